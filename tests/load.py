"""Clients that keep a server busy and remember every answer that promised a stored row."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import httpx2
import numpy as np

CLIENTS = 16


@dataclass
class Answers:
    """What the clients have seen: the prediction of every 200 by its id, and how often each other thing."""

    promised: dict[UUID, tuple[str, float]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Answers]:
    """Send single rows and small batches from many clients until exit; connections that fail are tried again."""
    answers = Answers()
    clients = [asyncio.create_task(_send(url, answers, random.Random(seed))) for seed in range(CLIENTS)]
    try:
        yield answers
    finally:
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


async def _send(url: str, answers: Answers, rng: random.Random) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        while True:
            rows = [[rng.uniform(0, 50_000), rng.random(), rng.uniform(5, 25), rng.random() * 5, 20.0]]
            rows *= rng.choice([1, 1, 1, 3])
            body = {"features": rows[0]} if len(rows) == 1 else {"instances": rows}
            try:
                response = await client.post("/predict", json=body)
            except httpx2.TransportError as error:
                answers.seen[type(error).__name__] += 1
                await asyncio.sleep(0.01)
                continue
            answers.seen[str(response.status_code)] += 1
            if response.status_code == 200:
                answer = response.json()
                for prediction in answer.get("predictions", [answer]):
                    key = UUID(prediction["prediction_id"])
                    answers.promised[key] = (str(prediction["prediction"]), prediction["score"])
            else:
                await asyncio.sleep(0.01)


async def find_lost(url: str, answers: Answers) -> list[UUID]:
    """Return the ids of answers whose row is missing, or holds something else than was answered."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT prediction_id, predicted_class, score FROM prediction_log")
    finally:
        await connection.close()
    assert len({row["prediction_id"] for row in rows}) == len(rows)
    stored = {row["prediction_id"]: (row["predicted_class"], row["score"]) for row in rows}
    return [key for key, said in answers.promised.items() if not _is_same(stored.get(key), said)]


def _is_same(stored: tuple[str, float] | None, said: tuple[str, float]) -> bool:
    return stored is not None and stored[0] == said[0] and np.float32(stored[1]) == np.float32(said[1])
