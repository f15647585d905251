"""Send recorded rows through a running server, and their labels after a delay; compare the F1 of both sides."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from app.measures.f1 import compute_f1
from app.prediction_log.record import read_id_time
from app.replay.rows import Replay, ReplayError, check_columns, load_labels, load_rows
from app.replay.sending import (
    LABEL_BATCH,
    MAX_REQUESTS,
    Due,
    Tally,
    fetch_feature_names,
    is_labelled,
    send_label_batch,
    send_rows,
)
from app.settings import F1Average

WINDOW_PATIENCE_SECONDS = 60.0
"""How long the final table waits until the server's quality job has counted the labels."""


@dataclass(frozen=True, slots=True)
class AnsweredRow:
    """An answered row: its prediction, the predicted class as text, and its label; None when no label is sent."""

    prediction_id: UUID
    predicted: str
    label: str | None


async def run_replay(replay: Replay, console: Console | None = None) -> int:
    """Send rows and labels; return 0 when every row was answered and both F1 values agree, else 1."""
    console = console or Console()
    rows = load_rows(replay.data, replay.start, replay.rows)
    labels = load_labels(replay.labels)
    tally = Tally()
    answers: list[AnsweredRow] = []
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console)
    due: asyncio.Queue[Due | None] = asyncio.Queue()
    sent_bar = bar.add_task("predictions", total=len(rows))
    label_bar = bar.add_task("labels", total=sum(is_labelled(n, replay.label_share) for n in range(len(rows))))

    def take_answer(row: Mapping[str, str], answer: dict[str, Any] | None) -> None:
        bar.advance(sent_bar)
        if answer is not None:
            key = UUID(answer["prediction_id"])
            label = labels[row["id"]] if is_labelled(len(answers), replay.label_share) else None
            answers.append(AnsweredRow(key, str(answer["prediction"]), label))
            tally.model, tally.version = answer["model"], answer["model_version"]
            if label is not None:
                due.put_nowait(Due(time.monotonic() + replay.label_delay_seconds, key, label))

    limits = httpx2.Limits(max_connections=MAX_REQUESTS)
    async with httpx2.AsyncClient(base_url=replay.url, timeout=30, limits=limits) as client:
        names = await fetch_feature_names(client)
        check_columns(replay, rows[0], names)
        with bar:
            async with asyncio.TaskGroup() as group:
                group.create_task(_send_labels(client, due, tally, lambda count: bar.advance(label_bar, count)))
                await send_rows(client, replay.rate, rows, names, tally, take_answer)
                due.put_nowait(None)
        return await _print_comparison(client, answers, tally, console)


async def _send_labels(
    client: httpx2.AsyncClient, due: "asyncio.Queue[Due | None]", tally: Tally, advance: Callable[[int], None]
) -> None:
    """Send the labels of answered rows when they are due, in batches."""
    batch: list[Due] = []
    while True:
        entry = await due.get()
        if entry is not None:
            await asyncio.sleep(entry.at - time.monotonic())
            batch.append(entry)
        if batch and (entry is None or due.empty() or len(batch) >= LABEL_BATCH):
            response = await send_label_batch(client, batch, tally)
            if response.status_code != 200:
                raise ReplayError(f"the server refused labels: {response.text[:300]}")
            advance(len(batch))
            batch = []
        if entry is None:
            return


async def _print_comparison(
    client: httpx2.AsyncClient, answers: Sequence[AnsweredRow], tally: Tally, console: Console
) -> int:
    """Print the final table; return the exit status."""
    if not answers:
        console.print(f"no row was answered: {dict(tally.refused)}")
        return 1
    confusion: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        if answer.label is not None:
            confusion[answer.label][answer.predicted] += 1
    labelled = sum(answer.label is not None for answer in answers)
    # First, so that labels that arrived before their row was stored are applied by the time of the next request.
    window = await _wait_for_window(client, labelled, tally)
    reported = await _fetch_period(client, answers, tally)
    average: F1Average = reported["average"]
    computed = compute_f1(confusion, average, await _fetch_positive_class(client, tally))
    table = Table("", "rows", "F1", title=f"replay through {tally.model} version {tally.version}")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("sent", f"{tally.sent:,}", "")
    table.add_row("answered", f"{tally.answered:,}", "")
    table.add_row("labelled", f"{sum(tally.labels.values()):,}", "")
    table.add_row("server, these rows", f"{reported['labelled']:,}", _show_f1(reported["f1"]))
    table.add_row("computed from the file", f"{labelled:,}", _show_f1(computed))
    if window is not None:
        table.add_row(f"model_f1_score, window {window['window']}", f"{window['labelled']:,}", _show_f1(window["f1"]))
    console.print(table)
    return _judge(reported, computed, labelled, tally, console)


def _judge(reported: Mapping[str, Any], computed: float | None, labelled: int, tally: Tally, console: Console) -> int:
    """Print whether both sides agree; return the exit status."""
    if reported["labelled"] > labelled:
        console.print("the server's F1 includes rows of other clients from the same time, so the values may differ")
    if tally.refused:
        console.print(f"not answered: {dict(tally.refused)}")
    same = reported["f1"] == computed or (
        reported["f1"] is not None and computed is not None and abs(reported["f1"] - computed) < 1e-12
    )
    console.print("the two F1 values agree" if same else "the two F1 values differ")
    return 0 if same and not tally.refused else 1


def _show_f1(value: float | None) -> str:
    """Format an F1; None is shown as `none`."""
    return "none" if value is None else f"{value:.6f}"


async def _fetch_period(client: httpx2.AsyncClient, answers: Sequence[AnsweredRow], tally: Tally) -> dict[str, Any]:
    """Fetch the result for exactly the time of this replay's predictions, read from their ids."""
    instants = [instant for answer in answers if (instant := read_id_time(answer.prediction_id)) is not None]
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


async def _wait_for_window(client: httpx2.AsyncClient, labelled: int, tally: Tally) -> dict[str, Any] | None:
    """Return the server's result for its shortest window once that has our labels; None if this takes too long."""
    deadline = time.monotonic() + WINDOW_PATIENCE_SECONDS
    while time.monotonic() < deadline:
        response = await client.get("/quality", params={"model": tally.model, "version": tally.version})
        for result in response.raise_for_status().json()["results"][:1]:
            if result["labelled"] >= labelled:
                window: dict[str, Any] = result
                return window
        await asyncio.sleep(0.5)
    return None


async def _fetch_positive_class(client: httpx2.AsyncClient, tally: Tally) -> str | None:
    """Fetch the positive class of the model, which `binary` F1 uses."""
    response = await client.get(f"/models/{tally.model}/versions/{tally.version}")
    positive = response.raise_for_status().json()["positive_class"]
    return None if positive is None else str(positive)
