"""What replication, restores and switchovers do to the tables: each has a key, one row where one is meant."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import httpx2
import pytest

from app.database.pool import open_pool
from app.prediction_log.partitions import drop_old_partitions
from app.quality.label_queries import fetch_history
from app.quality.label_sweep import sweep_pending
from app.quality.labels import take_labels
from app.quality.ledger import rebuild_day
from tests.conftest import execute
from tests.support.answers import label, predict
from tests.support.jobs import WINDOWS, open_jobs
from tests.support.ledger import assert_exact
from tests.support.processes import wait_until
from tests.support.programs import run_alembic, run_postgres
from tests.support.records import count_rows, make_label, make_record, register_demo, store

TABLES_WITHOUT_KEY = """
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
    AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
"""

NOW = datetime.now(UTC)


async def test_every_table_has_a_primary_key(connection: asyncpg.Connection) -> None:
    await store(connection, make_record())

    assert await connection.fetch(TABLES_WITHOUT_KEY) == []


@pytest.mark.filterwarnings("ignore:.*wal_level")
async def test_everything_works_while_all_tables_are_published(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """PostgreSQL refuses updates and deletes of a published table that has no key."""
    await connection.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    await register_demo(connection)
    old, new, late = make_record(NOW - timedelta(days=20)), make_record(), make_record()
    await store(connection, old, new)
    for text in ("1", "0", None):
        await take_labels(connection, [make_label(new.prediction_id, text, datetime.now(UTC))])
    await take_labels(connection, [make_label(late.prediction_id, "1", NOW)])
    await store(connection, late)

    swept = await sweep_pending(connection)
    async with open_jobs(database_url) as jobs:
        await jobs.refresh_quality()
        await jobs.refresh_quality()
        troubles = dict(jobs._lifecycle.job_troubles)
    rebuilt = await rebuild_day(connection, NOW.date(), timeout=30)
    async with open_pool(database_url, 1) as pool:
        dropped = await drop_old_partitions(pool, 10, timeout=5)

    assert (swept, troubles, rebuilt, dropped > 0) == ({"new": 1}, {}, True, True)
    assert await count_rows(connection, "quality_result") == len(WINDOWS)
    await connection.execute("DELETE FROM quality_bucket WHERE starts_at < now() - interval '10 days'")
    await assert_exact(connection)


async def test_tables_of_one_row_keep_one_row_when_data_alone_are_restored(
    database_url: str, empty_database_url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    record = make_record()
    await register_demo(connection)
    await store(connection, record)
    await take_labels(connection, [make_label(record.prediction_id, "1", NOW)])
    await run_alembic(empty_database_url, "upgrade", "head")
    restored = await asyncpg.connect(empty_database_url)
    day = record.created_at.date()
    await restored.execute("SELECT make_prediction_partitions($1::date, $1::date)", day)
    dump = str(tmp_path / "dump")

    _, dumped = await run_postgres("pg_dump", "--data-only", "--format=custom", f"--file={dump}", database_url)
    _, output = await run_postgres(
        "pg_restore", "--data-only", "--disable-triggers", f"--dbname={empty_database_url}", dump
    )

    assert dumped == ""
    refused = {line.split('"')[1] for line in output.splitlines() if line.startswith("pg_restore: error: COPY failed")}
    assert {"prediction_retention", "quality_check"} < refused
    assert [await count_rows(restored, table) for table in ("prediction_retention", "quality_check")] == [1, 1]
    await store(restored, make_record())
    await assert_exact(restored)
    await restored.close()


async def test_upgrade_keeps_one_row_of_those_that_a_restore_has_doubled(database_url: str) -> None:
    await run_alembic(database_url, "downgrade", "0002")
    await execute(database_url, "INSERT INTO prediction_retention VALUES ('2026-01-01Z'), ('-infinity')")
    await execute(database_url, "INSERT INTO quality_check VALUES ('2026-01-01Z', 3), ('epoch', 0)")

    status, output = await run_alembic(database_url, "upgrade", "head")

    assert status == 0, output
    connection = await asyncpg.connect(database_url)
    new_year = datetime(2026, 1, 1, tzinfo=UTC)
    assert [row["dropped_before"] for row in await connection.fetch("TABLE prediction_retention")] == [new_year]
    rows = await connection.fetch("SELECT minute, mismatch_rows FROM quality_check")
    assert [tuple(row) for row in rows] == [(new_year, 3)]
    await connection.close()


async def set_sequences_back(connection: asyncpg.Connection) -> None:
    """Logical replication carries rows, not sequences."""
    await connection.execute(
        "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'"
        " AND relnamespace = 'public'::regnamespace"
    )


async def test_labels_are_taken_when_a_switchover_left_the_sequences_behind(connection: asyncpg.Connection) -> None:
    record, waiting = make_record(), [make_record() for _ in range(6)]
    await register_demo(connection)
    await store(connection, record)
    given = ["1", "0", "1", "0", None, "1"]
    for text in given[:3]:
        await take_labels(connection, [make_label(record.prediction_id, text, datetime.now(UTC))])
    await take_labels(connection, [make_label(one.prediction_id, "1", NOW) for one in waiting[:3]])
    await set_sequences_back(connection)

    for text in given[3:]:
        await take_labels(connection, [make_label(record.prediction_id, text, datetime.now(UTC))])
    taken = await take_labels(connection, [make_label(one.prediction_id, "1", NOW) for one in waiting[3:]])

    assert taken.counts == {"pending": 3}
    assert [row["label"] for row in await fetch_history(connection, record.prediction_id)] == given
    ids = [row["pending_id"] for row in await connection.fetch("SELECT pending_id FROM pending_label ORDER BY 1")]
    assert len(ids) == 6


async def test_writers_at_once_keep_their_labels_when_the_sequences_are_behind(
    database_url: str, connection: asyncpg.Connection
) -> None:
    records = [make_record() for _ in range(40)]
    await take_labels(connection, [make_label(one.prediction_id, "1", NOW) for one in records[:20]])
    await set_sequences_back(connection)
    async with open_pool(database_url, 5) as pool:

        async def take(at: int) -> None:
            async with pool.acquire() as one:
                await take_labels(one, [make_label(records[at].prediction_id, "1", NOW)])

        await asyncio.gather(*(take(at) for at in range(20, 40)))

    assert await count_rows(connection, "pending_label") == 40


@asynccontextmanager
async def without_key(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """The state of the release before, in which `quality_delta` had no key, with all tables published."""
    await connection.execute("ALTER TABLE quality_delta DROP COLUMN delta_id")
    await connection.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    yield


@pytest.mark.filterwarnings("ignore:.*wal_level")
async def test_health_says_that_the_quality_job_fails_and_since_when(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    before = datetime.now(UTC)

    async def read_reasons() -> list[dict[str, str]]:
        reasons: list[dict[str, str]] = (await client.get("/health")).json()["reasons"]
        return reasons

    async with without_key(connection):
        [first] = await wait_until(read_reasons)
        await label(client, prediction_id=(await predict(client))["prediction_id"], label=1)

    assert (await read_reasons()) == [first]
    assert first["code"] == "quality_job_failed"
    assert "its schema, grants or triggers do not fit" in first["detail"]
    assert before <= datetime.fromisoformat(first["since"]) <= datetime.now(UTC)
    await connection.execute("DROP PUBLICATION everything")

    async def is_well() -> bool:
        return not await read_reasons()

    await wait_until(is_well)
