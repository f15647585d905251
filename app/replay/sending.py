"""Send rows at a rate, and batches of labels."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args
from uuid import UUID

import httpx2

from app.quality.labels import Outcome
from app.replay.rows import ReplayError

MAX_REQUESTS = 32
"""Most requests at a time; when the server is too slow for the rate, rows are sent more slowly."""

ROW_TRIES = 20
"""Attempts for a request that the server answers with 503: try again later."""

LABEL_BATCH = 500
"""Labels sent in one request."""

CATCH_UP_SECONDS = 1.0
"""Sending makes up for at most this much delay, so that an outage is not followed by a flood of late rows."""


@dataclass(frozen=True, slots=True)
class Due:
    """A label to send at a time, by the monotonic clock, for a prediction."""

    at: float
    prediction_id: UUID
    label: str


@dataclass(slots=True)
class Tally:
    """Counts of what has happened so far."""

    sent: int = 0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    model: str = ""
    version: str = ""


async def fetch_feature_names(client: httpx2.AsyncClient) -> list[str]:
    """Fetch the names of the features of the server's default model."""
    try:
        response = await client.get("/models")
        answer = response.raise_for_status().json()
    except (httpx2.HTTPError, ValueError) as error:
        raise ReplayError(f"no Scorekeeper answers at {client.base_url}: {error}") from error
    model = [model for model in answer["models"] if model["name"] == answer["default_model"]][-1]
    return [entry["name"] for entry in model["inputs"]]


async def send_rows(
    client: httpx2.AsyncClient,
    rate: float,
    rows: Iterable[Mapping[str, str]],
    names: Sequence[str],
    tally: Tally,
    on_answer: Callable[[Mapping[str, str], dict[str, Any] | None], None],
) -> None:
    """Send every row at its time; `on_answer` gets each row and its answer, None when it was refused."""
    slots = asyncio.Semaphore(MAX_REQUESTS)
    at = time.monotonic()

    async def send(row: Mapping[str, str]) -> None:
        try:
            answer = await _predict_row(client, row, names, tally)
        finally:
            slots.release()
        tally.answered += answer is not None
        on_answer(row, answer)

    async with asyncio.TaskGroup() as group:
        for row in rows:
            await asyncio.sleep(at - time.monotonic())
            await slots.acquire()
            tally.sent += 1
            group.create_task(send(row))
            at = max(at + 1 / rate, time.monotonic() - CATCH_UP_SECONDS)


async def _predict_row(
    client: httpx2.AsyncClient, row: Mapping[str, str], names: Sequence[str], tally: Tally
) -> dict[str, Any] | None:
    """Post one row, again while the server answers 503; return the answer, None when it is not 200."""
    body = {"features": {name: float(row[name]) for name in names}, "external_id": row["id"]}
    for _ in range(ROW_TRIES):
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


def is_labelled(number: int, share: float) -> bool:
    """Return whether this row (counted from 0) gets a label, when a `share` of the rows, evenly spread, gets one."""
    return math.floor((number + 1) * share) > math.floor(number * share)


async def send_label_batch(client: httpx2.AsyncClient, batch: Sequence[Due], tally: Tally) -> httpx2.Response:
    """Send the labels of `batch`; count their outcomes when the server takes them."""
    labels = [{"prediction_id": str(entry.prediction_id), "label": entry.label} for entry in batch]
    response = await client.post("/labels", json={"labels": labels})
    if response.status_code == 200:
        counts = response.json()
        tally.labels.update({outcome: counts[outcome] for outcome in get_args(Outcome)})
    return response
