"""Daily partitions of the log and its labels: make them ahead, drop old ones. The inserter makes missing ones too."""

from datetime import timedelta

import asyncpg

from app.prediction_log.queries import drop_oldest_partitions, make_partitions, read_day

DAYS_AHEAD = 7
"""How many days ahead partitions are made, so that the job may fail for a week without consequences."""


async def make_partitions_ahead(pool: asyncpg.Pool, timeout: float) -> int:
    """Make partitions from the database's yesterday, because clocks differ, to DAYS_AHEAD; return how many tables."""
    async with pool.acquire(timeout=timeout) as connection:
        today = await read_day(connection)
        return await make_partitions(connection, today - timedelta(days=1), today + timedelta(days=DAYS_AHEAD))


async def drop_old_partitions(pool: asyncpg.Pool, retention_days: int, timeout: float) -> int:
    """Drop days that ended more than `retention_days` days ago (0: none); return how many tables were dropped.

    The database's clock counts the days. Each day is a separate transaction, which blocks writers for a moment, and
    fails when it has to wait for a lock.
    """
    if not retention_days:
        return 0
    dropped = 0
    async with pool.acquire(timeout=timeout) as connection:
        before = await read_day(connection) - timedelta(days=retention_days)
        while tables := await drop_oldest_partitions(connection, before):
            dropped += tables
    return dropped
