"""Send recorded rows through a running server, their labels after a delay, and compare both sides' F1."""

import asyncio
import csv
import gzip
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.errors import ScorekeeperError
from app.prediction_log.record import read_id_time
from app.quality.f1 import compute_f1
from app.settings import F1Average

MAX_REQUESTS = 32
"""Requests under way at once; when the server is slower than the rate, the rate is what gives way."""

MAX_TRIES = 20
"""Attempts for a request that the server answers with 503, which asks for patience."""

LABEL_BATCH = 500
"""Labels sent in one request."""

WINDOW_PATIENCE_SECONDS = 60.0
"""How long the closing table waits for the server's own job to have counted the labels."""


class ReplayError(ScorekeeperError):
    """The replay cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What to send where: `rows` rows from row `start` on, `rate` per second."""

    url: str
    rows: int
    start: int
    rate: float
    label_delay_seconds: float
    data: Path
    labels: Path


@dataclass(frozen=True, slots=True)
class Due:
    """A label on its way: when to send it, by the monotonic clock, and for which prediction."""

    at: float
    prediction_id: UUID
    label: str


@dataclass(slots=True)
class Tally:
    """What has happened so far. `answers` are (row id, prediction id, predicted class as text)."""

    sent: int = 0
    answers: list[tuple[str, UUID, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    model: str = ""
    version: str = ""


async def run_replay(replay: Replay, console: Console | None = None) -> int:
    """Run it; return 0 when every row was answered and the two F1 values agree, else 1."""
    console = console or Console()
    rows = read_rows(replay.data, replay.start, replay.rows)
    labels = read_labels(replay.labels)
    tally = Tally()
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    due: asyncio.Queue[Due | None] = asyncio.Queue()
    sent_bar = bar.add_task("predictions", total=len(rows))
    label_bar = bar.add_task("labels", total=len(rows))

    def take_answer(row: Mapping[str, str], answer: dict[str, Any] | None) -> None:
        bar.advance(sent_bar)
        if answer is not None:
            key = UUID(answer["prediction_id"])
            tally.answers.append((row["id"], key, str(answer["prediction"])))
            tally.model, tally.version = answer["model"], answer["model_version"]
            due.put_nowait(Due(time.monotonic() + replay.label_delay_seconds, key, labels[row["id"]]))

    limits = httpx2.Limits(max_connections=MAX_REQUESTS)
    async with httpx2.AsyncClient(base_url=replay.url, timeout=30, limits=limits) as client:
        names = await fetch_feature_names(client)
        with bar:
            async with asyncio.TaskGroup() as group:
                group.create_task(send_labels(client, due, tally, lambda count: bar.advance(label_bar, count)))
                await send_rows(client, replay, rows, names, tally, take_answer)
                due.put_nowait(None)
        return await report(client, labels, tally, console)


def read_rows(path: Path, start: int, count: int) -> list[dict[str, str]]:
    """Read `count` rows of a CSV from row `start` on; fewer when it ends."""
    rows = list(itertools.islice(_open_csv(path), start, start + count))
    if not rows:
        raise ReplayError(f"{path} has no row {start}")
    return rows


def read_labels(path: Path) -> dict[str, str]:
    """Read the labels by row id: the first column is the id, the second the label."""
    return {values[0]: values[1] for values in (list(row.values()) for row in _open_csv(path))}


def _open_csv(path: Path) -> "csv.DictReader[str]":
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error
    return csv.DictReader(text.splitlines())


async def fetch_feature_names(client: httpx2.AsyncClient) -> list[str]:
    """Ask the server what its default model wants to know."""
    try:
        response = await client.get("/models")
        answer = response.raise_for_status().json()
    except (httpx2.HTTPError, ValueError) as error:
        raise ReplayError(f"no Scorekeeper answers at {client.base_url}: {error}") from error
    model = [model for model in answer["models"] if model["name"] == answer["default_model"]][-1]
    return [entry["name"] for entry in model["inputs"]]


async def send_rows(
    client: httpx2.AsyncClient,
    replay: Replay,
    rows: Sequence[Mapping[str, str]],
    names: Sequence[str],
    tally: Tally,
    on_answer: Callable[[Mapping[str, str], dict[str, Any] | None], None],
) -> None:
    """Send every row at its time; `on_answer` gets each row with its answer, None when it was refused."""
    missing = set(names) - set(rows[0])
    if missing:
        raise ReplayError(f"{replay.data} has no column {', '.join(sorted(missing))}, which the model needs")
    slots = asyncio.Semaphore(MAX_REQUESTS)
    started = time.monotonic()

    async def send(row: Mapping[str, str]) -> None:
        try:
            answer = await predict_row(client, row, names, tally)
        finally:
            slots.release()
        on_answer(row, answer)

    async with asyncio.TaskGroup() as group:
        for index, row in enumerate(rows):
            await asyncio.sleep(started + index / replay.rate - time.monotonic())
            await slots.acquire()
            tally.sent += 1
            group.create_task(send(row))


async def predict_row(
    client: httpx2.AsyncClient, row: Mapping[str, str], names: Sequence[str], tally: Tally
) -> dict[str, Any] | None:
    """Post one row; try again while the server asks for patience; None when it is not answered 200."""
    body = {"features": {name: float(row[name]) for name in names}, "external_id": row["id"]}
    for _ in range(MAX_TRIES):
        try:
            response = await client.post("/predict", json=body)
        except httpx2.TransportError as error:
            tally.refused[type(error).__name__] += 1
            return None
        if response.status_code == 200:
            answer: dict[str, Any] = response.json()
            return answer
        if response.status_code != 503:
            break
        await asyncio.sleep(float(response.headers.get("retry-after", 1)))
    tally.refused[str(response.status_code)] += 1
    return None


async def send_labels(
    client: httpx2.AsyncClient,
    due: "asyncio.Queue[Due | None]",
    tally: Tally,
    advance: Callable[[int], None],
) -> None:
    """Send the label of each answered row when it is due, in batches of what is due by then."""
    batch: list[dict[str, str]] = []
    while True:
        entry = await due.get()
        if entry is not None:
            await asyncio.sleep(entry.at - time.monotonic())
            batch.append({"prediction_id": str(entry.prediction_id), "label": entry.label})
        if batch and (entry is None or due.empty() or len(batch) >= LABEL_BATCH):
            response = await client.post("/labels", json={"labels": batch})
            if response.status_code != 200:
                raise ReplayError(f"the server refused labels: {response.text[:300]}")
            counts = response.json()
            tally.labels.update({outcome: count for outcome, count in counts.items() if outcome != "received"})
            advance(len(batch))
            batch = []
        if entry is None:
            return


async def report(client: httpx2.AsyncClient, labels: Mapping[str, str], tally: Tally, console: Console) -> int:
    """Print the closing table."""
    if not tally.answers:
        console.print(f"no row was answered: {dict(tally.refused)}")
        return 1
    window = await wait_for_window(client, tally)  # labels that waited for their rows have been applied by then
    reported = await fetch_period(client, tally)
    confusion: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row_id, _, predicted in tally.answers:
        confusion[labels[row_id]][predicted] += 1
    average: F1Average = reported["average"]
    computed = compute_f1(confusion, average, await fetch_positive_class(client, tally))
    table = Table("", "rows", "F1", title=f"replay through {tally.model} version {tally.version}")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("sent", f"{tally.sent:,}", "")
    table.add_row("answered", f"{len(tally.answers):,}", "")
    table.add_row("labelled", f"{sum(tally.labels.values()):,}", "")
    table.add_row("server, these rows", f"{reported['labelled']:,}", show_f1(reported["f1"]))
    table.add_row("computed from the file", f"{len(tally.answers):,}", show_f1(computed))
    if window is not None:
        table.add_row(f"model_f1_score, window {window['window']}", f"{window['labelled']:,}", show_f1(window["f1"]))
    console.print(table)
    return judge(reported, computed, tally, console)


def judge(reported: Mapping[str, Any], computed: float | None, tally: Tally, console: Console) -> int:
    """Say in one line whether the two sides agree; return the exit status."""
    if reported["labelled"] > len(tally.answers):
        console.print("others were labelled meanwhile too: the server's F1 is over more rows than this replay's")
    if tally.refused:
        console.print(f"not answered: {dict(tally.refused)}")
    same = reported["f1"] == computed or (
        reported["f1"] is not None and computed is not None and abs(reported["f1"] - computed) < 1e-12
    )
    console.print("the two F1 values agree" if same else "the two F1 values differ")
    return 0 if same and not tally.refused else 1


def show_f1(value: float | None) -> str:
    """Show an F1, or that there is none."""
    return "none" if value is None else f"{value:.6f}"


async def fetch_period(client: httpx2.AsyncClient, tally: Tally) -> dict[str, Any]:
    """Ask for the F1 of exactly the time in which our predictions were made, by their own ids' clock."""
    instants = [instant for _, key, _ in tally.answers if (instant := read_id_time(key)) is not None]
    response = await client.get(
        "/quality",
        params={
            "model": tally.model,
            "version": tally.version,
            "since": min(instants).isoformat(),
            "until": max(instants).isoformat(),
        },
    )
    result: dict[str, Any] = response.raise_for_status().json()["results"][0]
    return result


async def wait_for_window(client: httpx2.AsyncClient, tally: Tally) -> dict[str, Any] | None:
    """Wait until the server's job has counted our labels in its shortest window; None when it does not."""
    deadline = time.monotonic() + WINDOW_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        response = await client.get("/quality", params={"model": tally.model, "version": tally.version})
        for result in response.raise_for_status().json()["results"][:1]:
            if result["labelled"] >= len(tally.answers):
                window: dict[str, Any] = result
                return window
        await asyncio.sleep(0.5)
    return None


async def fetch_positive_class(client: httpx2.AsyncClient, tally: Tally) -> str | None:
    """Ask which class `binary` F1 is about."""
    response = await client.get(f"/models/{tally.model}/versions/{tally.version}")
    positive = response.raise_for_status().json()["positive_class"]
    return None if positive is None else str(positive)
