"""RETENTION_DAYS: old days are dropped, their counts stay, and what still comes for them changes nothing."""

from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from app.database.pool import open_pool
from app.prediction_log.partitions import DAYS_AHEAD, drop_old_partitions, make_partitions_ahead
from app.quality.label_sweep import sweep_pending
from app.quality.labels import take_labels
from tests.support.ledger import assert_exact, fold, read_ledger
from tests.support.records import (
    PARENTS,
    count_rows,
    insert_records,
    list_partitions,
    make_label,
    make_record,
    register_demo,
    store,
)


def days_ago(days: int) -> datetime:
    """That time of this day: midnight may have passed since the tests began."""
    return datetime.now(UTC) - timedelta(days=days)


async def drop(database_url: str, days: int) -> int:
    async with open_pool(database_url, 1) as pool:
        return await drop_old_partitions(pool, days, timeout=5)


async def test_old_days_are_dropped_and_their_counts_stay(database_url: str, connection: asyncpg.Connection) -> None:
    old, young = make_record(days_ago(11)), make_record(days_ago(9))
    await register_demo(connection)
    await store(connection, old, young)
    await take_labels(connection, [make_label(record.prediction_id, "1", days_ago(0)) for record in (old, young)])
    before = await read_ledger(connection)

    dropped = await drop(database_url, 10)

    assert dropped == 3
    assert [await count_rows(connection, parent) for parent in PARENTS] == [1, 1, 1]
    await fold(connection)
    assert await read_ledger(connection) == before


async def test_nothing_is_dropped_without_retention(database_url: str, connection: asyncpg.Connection) -> None:
    await store(connection, make_record(days_ago(1000)))

    assert await drop(database_url, 0) == 0
    assert await count_rows(connection, "prediction_log") == 1


async def test_days_that_are_made_ahead_are_not_dropped(database_url: str, connection: asyncpg.Connection) -> None:
    async with open_pool(database_url, 1) as pool:
        await make_partitions_ahead(pool, timeout=5)

        dropped = await drop_old_partitions(pool, 1, timeout=5)
        made = await make_partitions_ahead(pool, timeout=5)

    assert (dropped, made) == (0, 0)
    assert len(await list_partitions(connection, "prediction_log")) == DAYS_AHEAD + 2


async def test_today_is_never_dropped(connection: asyncpg.Connection) -> None:
    with pytest.raises(asyncpg.RaiseError, match="today is kept"):
        await connection.execute("SELECT drop_oldest_prediction_partitions((now() AT TIME ZONE 'UTC')::date)")


async def test_only_who_was_granted_it_may_drop(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE ROLE passer_by")
    try:
        await connection.execute("SET ROLE passer_by")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("SELECT drop_oldest_prediction_partitions('2024-01-01')")
    finally:
        await connection.execute("RESET ROLE; DROP ROLE passer_by")


async def test_label_of_a_dropped_prediction_is_expired(database_url: str, connection: asyncpg.Connection) -> None:
    record, waiting = make_record(days_ago(11)), make_record(days_ago(11))
    await register_demo(connection)
    await store(connection, record)
    early = (await take_labels(connection, [make_label(waiting.prediction_id, "1", days_ago(0))])).counts
    await drop(database_url, 10)

    late = (await take_labels(connection, [make_label(record.prediction_id, "1", days_ago(0))])).counts
    swept = await sweep_pending(connection)

    assert (early, late, swept) == ({"pending": 1}, {"expired": 1}, {"expired": 1})
    assert await count_rows(connection, "pending_label") == 0


async def test_rows_that_come_again_for_a_dropped_day_are_not_counted_twice(
    database_url: str, connection: asyncpg.Connection
) -> None:
    record, new = make_record(days_ago(11)), make_record(days_ago(0))
    await register_demo(connection)
    await store(connection, record, new)
    before = await read_ledger(connection)
    await drop(database_url, 10)

    await store(connection, record)
    labelled = (await take_labels(connection, [make_label(record.prediction_id, "1", days_ago(0))])).counts
    again = await drop(database_url, 10)

    assert (labelled, again) == ({"new": 1}, 3)
    assert await read_ledger(connection) == before
    assert await count_rows(connection, "prediction_log") == 1


async def test_writers_do_not_wait_for_a_drop_that_has_to_wait(
    database_url: str, connection: asyncpg.Connection
) -> None:
    await store(connection, make_record(days_ago(11)), make_record(days_ago(0)))
    reader = await asyncpg.connect(database_url)
    async with reader.transaction():
        await reader.fetch("SELECT FROM prediction_log")

        with pytest.raises(asyncpg.LockNotAvailableError):
            await drop(database_url, 10)
        await insert_records(connection, [make_record(days_ago(0))])

    await reader.close()
    assert await drop(database_url, 10) == 3
    await connection.execute("DELETE FROM quality_delta WHERE minute < now() - interval '10 days'")
    await assert_exact(connection)
