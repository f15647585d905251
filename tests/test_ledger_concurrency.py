"""Writers, the sweep and the fold at once, killed at random: in the end the ledger equals a full count of the rows."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import pytest

from app.database.pool import open_pool
from app.database.queries import Connection
from app.prediction_log.record import Record
from app.quality.label_sweep import sweep_pending
from app.quality.labels import take_labels
from app.quality.refresh import QualitySettings, refresh_results
from app.settings import QualityWindow
from tests.support.ledger import assert_exact
from tests.support.records import count_rows, insert_records, make_label, make_record, register_demo, store

NOW = datetime.now(UTC)

ROWS, BATCH_ROWS, TRIES = 1200, 40, 100

KILL_ONE = """
SELECT pg_terminate_backend(pid) FROM (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle' ORDER BY random() LIMIT 1
) victim
"""

INTERRUPTIONS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

SETTINGS = QualitySettings((QualityWindow("1h", timedelta(hours=1)),), average=None, min_labels=1, objective=None)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    async with open_pool(database_url, 14) as opened:
        yield opened


async def persist(action: Callable[[Connection], Awaitable[object]], pool: asyncpg.Pool, chance: random.Random) -> None:
    """Run `action` until it holds, as a client and the shipper do; now and then cancel it in the middle."""
    for _ in range(TRIES):
        with contextlib.suppress(*INTERRUPTIONS):
            patience = chance.uniform(0.001, 0.03) if chance.random() < 0.2 else 20
            async with asyncio.timeout(patience), pool.acquire(timeout=5) as connection:
                await action(connection)
                return
    raise AssertionError(f"not within {TRIES} tries")


async def ship(pool: asyncpg.Pool, records: Sequence[Record], chance: random.Random) -> None:
    """Insert rows in batches, each row twice."""
    for start in range(0, len(records), BATCH_ROWS // 2):
        await persist(partial(insert_records, records=records[start : start + BATCH_ROWS]), pool, chance)


async def label(pool: asyncpg.Pool, records: Sequence[Record], chance: random.Random) -> None:
    """Label, correct and withdraw at random, in any order of observation."""
    for _ in range(25):
        labels = [
            make_label(
                record.prediction_id,
                chance.choice(("0", "1", "1", None)),
                NOW + chance.randrange(100) * timedelta(seconds=1),
                NOW,
            )
            for record in chance.sample(records, 30)
        ]
        await persist(partial(take_labels, labels=labels), pool, chance)


async def refresh(pool: asyncpg.Pool, done: asyncio.Event) -> None:
    """Sweep and fold, as the jobs do."""
    while not done.is_set():
        with contextlib.suppress(*INTERRUPTIONS):
            async with pool.acquire() as connection:
                await sweep_pending(connection)
        with contextlib.suppress(*INTERRUPTIONS):
            await refresh_results(pool, SETTINGS, [], set(), timedelta(0))


async def kill(connection: asyncpg.Connection, chance: random.Random, done: asyncio.Event) -> None:
    """End the connection of somebody who is busy, again and again."""
    while not done.is_set():
        await connection.execute(KILL_ONE)
        await asyncio.sleep(chance.uniform(0.005, 0.05))


@asynccontextmanager
async def disturb(pool: asyncpg.Pool, connection: asyncpg.Connection, chance: random.Random) -> AsyncIterator[None]:
    """Refresh and kill until exit."""
    done = asyncio.Event()
    tasks = [asyncio.create_task(work) for work in (refresh(pool, done), kill(connection, chance, done))]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*tasks)


@pytest.mark.parametrize("seed", range(3))
async def test_ledger_is_exact_after_writers_were_killed_at_random(
    pool: asyncpg.Pool, connection: asyncpg.Connection, seed: int
) -> None:
    chance = random.Random(seed)
    records = [
        make_record(NOW - chance.random() * timedelta(minutes=90), predicted=chance.choice("01"), score=chance.random())
        for _ in range(ROWS)
    ]
    await register_demo(connection)
    await store(connection, make_record(NOW - timedelta(days=1)), make_record(NOW))

    async with disturb(pool, connection, chance):
        await asyncio.gather(
            *(ship(pool, rows, chance) for rows in (records, records[::-1])),
            *(label(pool, records, random.Random(f"{seed} {number}")) for number in range(8)),
        )

    while await count_rows(connection, "pending_label"):
        await connection.execute("UPDATE pending_label SET next_try_at = now()")
        await sweep_pending(connection)
    assert await count_rows(connection, "prediction_log") == ROWS + 2
    assert await connection.fetchval("SELECT count(*) FROM prediction_label WHERE revision > 2") > 10
    await assert_exact(connection)
