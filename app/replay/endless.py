"""Replay the same rows again and again, as a demo; it continues even when the server stops for a while."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Never
from uuid import UUID

import httpx2
from rich.console import Console

from app.replay.rows import Replay, check_columns, load_labels, load_rows
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

LABEL_SECONDS = 1.0
"""Pause between two requests for labels."""

REPORT_SECONDS = 60.0
"""Pause between two lines about the progress."""

MAX_DUE = 100_000
"""Most labels that wait while the server takes none; when more wait, the oldest are dropped."""


async def run_endless(replay: Replay, console: Console | None = None) -> Never:
    """Send the rows again and again, and their labels when they are due, until cancelled."""
    console = console or Console(soft_wrap=True)
    rows = load_rows(replay.data, replay.start, replay.rows)
    labels = load_labels(replay.labels)
    tally = Tally()
    due: deque[Due] = deque(maxlen=MAX_DUE)

    def take_answer(row: Mapping[str, str], answer: dict[str, Any] | None) -> None:
        if answer is not None and is_labelled(tally.answered - 1, replay.label_share):
            at = time.monotonic() + replay.label_delay_seconds
            due.append(Due(at, UUID(answer["prediction_id"]), labels[row["id"]]))

    limits = httpx2.Limits(max_connections=MAX_REQUESTS)
    async with httpx2.AsyncClient(base_url=replay.url, timeout=30, limits=limits) as client:
        names = await fetch_feature_names(client)
        check_columns(replay, rows[0], names)
        console.print(f"{len(rows):,} rows again and again, {replay.rate:g} per second; Ctrl-C stops", highlight=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(_send_labels(client, due, tally))
            group.create_task(_print_progress(client, tally, console))
            await send_rows(client, replay.rate, itertools.cycle(rows), names, tally, take_answer)
    raise AssertionError("there is always another row")


async def _send_labels(client: httpx2.AsyncClient, due: deque[Due], tally: Tally) -> Never:
    """Send due labels every second; try them again while the server is unavailable, count those that it refuses."""
    while True:
        await asyncio.sleep(LABEL_SECONDS)
        if batch := _take_due(due):
            try:
                status = (await send_label_batch(client, batch, tally)).status_code
            except httpx2.TransportError:
                status = 503
            if status == 503:
                due.extendleft(reversed(batch))
            elif status != 200:
                tally.refused[f"labels: {status}"] += len(batch)


def _take_due(due: deque[Due]) -> list[Due]:
    """Take the labels that are due from the queue, at most as many as one request can have."""
    batch: list[Due] = []
    while due and len(batch) < LABEL_BATCH and due[0].at <= time.monotonic():
        batch.append(due.popleft())
    return batch


async def _print_progress(client: httpx2.AsyncClient, tally: Tally, console: Console) -> Never:
    """Print a line every minute."""
    while True:
        await asyncio.sleep(REPORT_SECONDS)
        line = f"answered {tally.answered:,}, labelled {sum(tally.labels.values()):,}, {await _describe_f1(client)}"
        console.print(line + (f", not answered {dict(tally.refused)}" if tally.refused else ""), highlight=False)


async def _describe_f1(client: httpx2.AsyncClient) -> str:
    """Return a phrase with the server's F1 in its first window."""
    try:
        answer = (await client.get("/quality")).raise_for_status().json()
    except (httpx2.HTTPError, ValueError):
        return "F1 not available from the server"
    for result in answer["results"][:1]:
        if result["f1"] is not None:
            return f"F1 {result['f1']:.4f} over {result['window']} ({result['labelled']:,} labels)"
    return "no F1 yet"
