"""`scorekeeper labels import`: send a file of labels to a running server; it can be interrupted and continued."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import httpx2
import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.errors import ScorekeeperError
from app.exchange.aside import append_rows, clear_rows
from app.exchange.checkpoint import Checkpoint, find_checkpoint, write_checkpoint
from app.exchange.label_batch import EmptyLabel, LabelBatch, read_batch
from app.exchange.label_files import Columns, LabelFile, LabelFormat, open_labels
from app.exchange.text_files import TextForm
from app.quality.labels import Outcome

BATCH_TRIES = 20
"""Attempts to send a batch while the server refuses it or cannot be reached: over seven minutes."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Pauses between attempts: each is twice the one before, and at least the server's Retry-After."""

ASKS_FOR_PATIENCE = (429, 502, 503, 504)
"""Statuses of the server, or of a proxy in front of it, after which a batch is sent again."""

LISTED_REJECTIONS = 10_000
"""Most rejected labels that the server lists in one answer."""

SHOWN_ROWS = 10
"""Most malformed rows that are shown when the import stops, and most classes that are named for a rejected one."""


class LabelImportError(ScorekeeperError):
    """The import cannot continue; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class LabelImport:
    """What to send, and where. Malformed rows go to the file `malformed`; when it is None, they stop the import.

    Rows that the server rejects go to the file `rejected`.
    """

    url: str
    path: Path
    file_format: LabelFormat
    columns: Columns
    empty_label: EmptyLabel
    batch_rows: int
    state: Path
    restart: bool
    malformed: Path | None
    rejected: Path
    form: TextForm


async def run_import(plan: LabelImport, console: Console | None = None) -> int:
    """Send all rows, from where an earlier run stopped; return 1 when some were rejected or malformed, else 0."""
    console = console or Console()
    done = find_checkpoint(plan.state, _describe(plan), restart=plan.restart)
    if done.is_finished:
        console.print(f"{plan.path} was already imported; --restart sends it again, with the same times of observation")
    else:
        async with httpx2.AsyncClient(base_url=plan.url, timeout=60) as client:
            with open_labels(plan.path, plan.file_format, plan.columns, plan.form) as file:
                await _check_live(client)
                clear_rows(plan.rejected, done.rejected_bytes)
                if plan.malformed is not None:
                    append_rows(plan.malformed, done.malformed_bytes, [])
                await _send_file(client, plan, file, done, console)
    _print_counts(done, plan, console)
    return 1 if done.malformed or done.counts.get("rejected") else 0


def check_file(plan: LabelImport, console: Console | None = None) -> int:
    """Read the whole file as an import would and send nothing; return 1 when some rows are malformed, else 0."""
    console, ready, done = console or Console(), 0, Checkpoint("", datetime.now(UTC))
    with open_labels(plan.path, plan.file_format, plan.columns, plan.form) as file:
        while some := list(itertools.islice(file.rows, plan.batch_rows)):
            batch = read_batch(some, plan.columns, plan.empty_label, done.began_at)
            for row, fault in batch.malformed[: max(0, SHOWN_ROWS - done.malformed)]:
                console.print(f"{plan.path.name} {row.place}: {fault}", markup=False)
            ready += len(batch.lines)
            done.rows += len(some)
            done.empty += batch.empty
            done.malformed += len(batch.malformed)
            done.count_reasons(f"malformed, {fault}" for _, fault in batch.malformed)
    done.counts = {"would be sent": ready}
    _print_counts(done, plan, console)
    return 1 if done.malformed else 0


def _describe(plan: LabelImport) -> str:
    """Return a text that identifies this import: the server, the file with its size and time, and how to read it."""
    try:
        status = plan.path.stat()
    except OSError as error:
        raise LabelImportError(f"{plan.path} cannot be read: {error}") from error
    about = (plan.url, status.st_size, status.st_mtime_ns, plan.file_format, plan.columns, plan.empty_label)
    form = () if plan.form == TextForm() else (plan.form,)  # without it, as the release before wrote it
    return msgspec.json.encode(about + form).decode()


async def _check_live(client: httpx2.AsyncClient) -> None:
    """Raise LabelImportError at once, not after many attempts, when no server answers."""
    try:
        (await client.get("/health/live")).raise_for_status()
    except httpx2.HTTPError as error:
        raise LabelImportError(f"no Scorekeeper answers at {client.base_url}: {error}") from error


async def _send_file(
    client: httpx2.AsyncClient,
    plan: LabelImport,
    file: LabelFile,
    done: Checkpoint,
    console: Console,
) -> None:
    """Send the rest of the file one batch at a time, so that at most one batch has to be sent again."""
    if done.rows:
        console.print(f"continuing after {done.rows:,} rows, which an earlier run has sent")
    rows = itertools.islice(file.rows, done.rows, None)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("labels", total=file.total)
        while some := list(itertools.islice(rows, plan.batch_rows)):
            observed_at = done.began_at + timedelta(microseconds=done.rows)
            batch = read_batch(some, plan.columns, plan.empty_label, observed_at)
            _put_malformed_aside(plan, batch, done)
            if batch.lines:
                _note_answer(plan, batch, await _send_batch(client, batch), done)
            done.rows += len(some)
            done.empty += batch.empty
            write_checkpoint(plan.state, done)
            bar.update(task, completed=file.read())
        bar.update(task, completed=file.total)
    done.is_finished = True
    write_checkpoint(plan.state, done)


def _put_malformed_aside(plan: LabelImport, batch: LabelBatch, done: Checkpoint) -> None:
    """Write malformed rows to their file; without one, raise LabelImportError before anything of the batch is sent."""
    if not batch.malformed:
        return
    if plan.malformed is None:
        shown = "".join(f"\n  {plan.path.name} {row.place}: {fault}" for row, fault in batch.malformed[:SHOWN_ROWS])
        more = f"\n  and {len(batch.malformed) - SHOWN_ROWS} more" if len(batch.malformed) > SHOWN_ROWS else ""
        raise LabelImportError(
            f"malformed rows; this batch and the rows after it were not sent:{shown}{more}\n"
            "correct them and run again with --restart, or write them to a file with --skip-invalid FILE"
        )
    done.malformed_bytes = append_rows(plan.malformed, done.malformed_bytes, batch.malformed)
    done.malformed += len(batch.malformed)
    done.count_reasons(f"malformed, {fault}" for _, fault in batch.malformed)


def _note_answer(plan: LabelImport, batch: LabelBatch, answer: Mapping[str, Any], done: Checkpoint) -> None:
    """Add the counts of an answer; write the rows that the server has rejected to their file."""
    done.counts = dict(Counter(done.counts) + Counter({name: answer[name] for name in get_args(Outcome)}))
    rejected = [
        (batch.rows[int(each["pointer"].split("/")[1])], f"{each['detail']} (allowed: {_join(each['allowed'])})")
        for each in answer.get("rejections", ())  # a server of the release before does not list them
    ]
    if rejected:
        done.rejected_bytes = append_rows(plan.rejected, done.rejected_bytes, rejected)
        done.count_reasons(f"rejected, {reason}" for _, reason in rejected)


def _join(classes: Sequence[object]) -> str:
    """Name up to ten classes."""
    more = ", ..." if len(classes) > SHOWN_ROWS else ""
    return ", ".join(map(str, classes[:SHOWN_ROWS])) + more


async def _send_batch(client: httpx2.AsyncClient, batch: LabelBatch) -> Mapping[str, Any]:
    """Send one batch until the server takes it; return its answer."""
    body, pause, reason = b"\n".join(batch.lines), FIRST_PAUSE_SECONDS, ""
    for _ in range(BATCH_TRIES):
        wait = pause
        try:
            answer = await client.post(
                "/labels",
                params={"rejections": min(len(batch.lines), LISTED_REJECTIONS)},
                content=body,
                headers={"Content-Type": "application/x-ndjson"},
            )
        except httpx2.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code == 200:
                return answer.json()  # type: ignore[no-any-return]
            if answer.status_code not in ASKS_FOR_PATIENCE:
                raise LabelImportError(_explain_refusal(answer, batch))
            reason = f"{answer.status_code} {answer.text[:300]}"
            asked = answer.headers.get("retry-after", "")
            wait = max(pause, float(asked) if asked.isdecimal() else 0.0)
        await asyncio.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    raise LabelImportError(f"the server takes no labels; run the same command later to continue here: {reason}")


def _explain_refusal(answer: httpx2.Response, batch: LabelBatch) -> str:
    """Describe what the server refused, and in which rows of the file."""
    if answer.status_code == 413 or "batch_size" in answer.text:
        return f"{len(batch.lines):,} labels at once are too many, try a smaller --batch: {answer.text[:300]}"
    return f"the server refused the rows from {batch.rows[0].place} to {batch.rows[-1].place}: {answer.text[:300]}"


def _print_counts(done: Checkpoint, plan: LabelImport, console: Console) -> None:
    """Print the counts; together they are the rows that were read."""
    table = Table("", "rows")
    table.columns[1].justify = "right"
    for name, count in (
        ("read", done.rows),
        *done.counts.items(),
        ("without a label, not sent", done.empty),
        ("malformed, not sent", done.malformed),
    ):
        if count or name == "read":
            table.add_row(name, f"{count:,}")
    console.print(table)
    if done.counts.get("pending"):
        console.print("pending: applied when their prediction is stored, dropped after 30 days")
    for reason, count in done.reasons.items():
        console.print(f"{count:,} {reason}", markup=False)
    if done.rejected_bytes:
        console.print(f"the rejected rows are in {plan.rejected}", markup=False)
