"""Clients that keep a server busy and remember every answer that promised a stored row."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import httpx2
import msgspec
import numpy as np

CLIENTS = 16

CLIENT_TIMEOUT_SECONDS = 30.0
"""A request that takes longer counts as ReadTimeout, which no test allows."""


class Promise(NamedTuple):
    """What a 200 said of one row."""

    predicted_class: str
    score: float
    model_version: str


class Exchange(NamedTuple):
    """One request: when it was sent (monotonic), what came of it, how long that took, how many rows it had."""

    sent_at: float
    outcome: str
    seconds: float
    rows: int


@dataclass
class Answers:
    """What the clients have seen: the prediction of every 200 by its id, and how often each other thing.

    `indeterminate` counts rows whose request was sent but not answered 200 or 4xx: each may be stored, or not.
    """

    promised: dict[UUID, Promise] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    exchanges: list[Exchange] = field(default_factory=list)
    indeterminate: int = 0


class _Said(msgspec.Struct):
    prediction_id: UUID
    prediction: int | str
    score: float
    model_version: str


class _Answer(msgspec.Struct):
    predictions: list[_Said]


class _Line(msgspec.Struct, array_like=True):
    """One promise in a client's file."""

    prediction_id: UUID
    predicted_class: str
    score: float
    model_version: str


@asynccontextmanager
async def load(
    url: str, *, clients: int = CLIENTS, batch: int | None = None, record: Path | None = None
) -> AsyncIterator[Answers]:
    """Send single rows and small batches, or `batch` rows each, until exit; what fails is tried again.

    With a directory `record` each client writes what it was promised to a file of its own, on the disk, and goes on.
    """
    answers = Answers()
    tasks = [asyncio.create_task(_Client(url, answers, seed, batch, record).run()) for seed in range(clients)]
    try:
        yield answers
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
    assert broken == [], "a client has a bug"


class _Client:
    def __init__(self, url: str, answers: Answers, seed: int, batch: int | None, record: Path | None) -> None:
        self._url = url
        self._answers = answers
        self._rng = random.Random(seed)
        self._batch = batch
        self._file = None if record is None else open_record(record / f"client-{seed}")

    async def run(self) -> None:
        """Send until cancelled; a request that is cut off then is indeterminate."""
        try:
            async with httpx2.AsyncClient(base_url=self._url, timeout=CLIENT_TIMEOUT_SECONDS) as client:
                while True:
                    if await self._send(client) != "200":
                        await asyncio.sleep(0.01)
        finally:
            if self._file is not None:
                os.close(self._file)

    async def _send(self, client: httpx2.AsyncClient) -> str:
        rows = self._make_rows()
        body = {"features": rows[0]} if len(rows) == 1 else {"instances": rows}
        sent_at = time.monotonic()
        self._answers.indeterminate += len(rows)
        try:
            response = await client.post("/predict", content=msgspec.json.encode(body))
        except httpx2.TransportError as error:
            outcome = type(error).__name__
        else:
            outcome = str(response.status_code)
        if outcome[0] == "4" or outcome in {"200", "ConnectError", "ConnectTimeout"}:
            self._answers.indeterminate -= len(rows)
        self._answers.seen[outcome] += 1
        self._answers.exchanges.append(Exchange(sent_at, outcome, time.monotonic() - sent_at, len(rows)))
        if outcome == "200":
            self._remember(response.content, len(rows))
        return outcome

    def _make_rows(self) -> list[list[float]]:
        rng = self._rng
        row = [rng.uniform(0, 50_000), rng.random(), rng.uniform(5, 25), rng.random() * 5, 20.0]
        return [row] * (rng.choice([1, 1, 1, 3]) if self._batch is None else self._batch)

    def _remember(self, content: bytes, rows: int) -> None:
        """Keep what was promised, first on the disk."""
        if rows == 1:
            said = [msgspec.json.decode(content, type=_Said)]
        else:
            said = msgspec.json.decode(content, type=_Answer).predictions
        assert len(said) == rows
        promises = {one.prediction_id: Promise(str(one.prediction), one.score, one.model_version) for one in said}
        if self._file is not None:
            write_record(self._file, promises)
        self._answers.promised.update(promises)


def open_record(path: Path) -> int:
    """Open a file for promises."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def write_record(descriptor: int, promises: Mapping[UUID, Promise]) -> None:
    """Write promises to the disk."""
    lines = [msgspec.json.encode(_Line(key, *promise)) + b"\n" for key, promise in promises.items()]
    os.write(descriptor, b"".join(lines))
    os.fdatasync(descriptor)


def read_record(directory: Path) -> dict[UUID, Promise]:
    """Read back what the clients were promised."""
    decode = msgspec.json.Decoder(_Line).decode
    lines = [decode(line) for path in sorted(directory.iterdir()) for line in path.read_bytes().splitlines()]
    return {line.prediction_id: Promise(line.predicted_class, line.score, line.model_version) for line in lines}


async def find_lost(url: str, answers: Answers) -> list[UUID]:
    """Return the ids of answers whose row is missing, or holds something else than was answered."""
    rows = await fetch_rows(url)
    assert len({key for key, _ in rows}) == len(rows)
    return list_lost(answers.promised, rows)


FETCH_PROMISED = "SELECT prediction_id, predicted_class, score, model_version FROM prediction_log"


async def fetch_rows(url: str) -> list[tuple[UUID, Promise]]:
    """Fetch what is stored, as a client may have been promised it."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(FETCH_PROMISED, timeout=30)
    finally:
        await connection.close()
    return [(row["prediction_id"], Promise(*list(row)[1:])) for row in rows]


def list_lost(promised: Mapping[UUID, Promise], rows: Collection[tuple[UUID, Promise]]) -> list[UUID]:
    """Return the ids that were promised and are not among `rows` with that content."""
    stored = dict(rows)
    return [key for key, promise in promised.items() if not _is_same(stored.get(key), promise)]


def _is_same(stored: Promise | None, said: Promise) -> bool:
    if stored is None or np.float32(stored.score) != np.float32(said.score):
        return False
    return (stored.predicted_class, stored.model_version) == (said.predicted_class, said.model_version)
