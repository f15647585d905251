"""Daily partitions of the log and its labels: made ahead by a job, on demand when an insert finds none, and dropped."""

from datetime import UTC, datetime, timedelta

import asyncpg

from app.prediction_log.queries import drop_oldest_partitions, make_partitions

DAYS_AHEAD = 7
"""How far ahead partitions are made: a week in which the job may fail before anybody notices."""


async def make_partitions_ahead(pool: asyncpg.Pool, timeout: float) -> int:
    """Make the partitions from yesterday, for clocks that differ, to DAYS_AHEAD; return how many tables were made."""
    today = datetime.now(UTC).date()
    async with pool.acquire(timeout=timeout) as connection:
        return await make_partitions(connection, today - timedelta(days=1), today + timedelta(days=DAYS_AHEAD))


async def drop_old_partitions(pool: asyncpg.Pool, retention_days: int, timeout: float) -> int:
    """Drop days that ended over `retention_days` days ago, 0: none; return how many tables were dropped.

    Each day is a transaction of its own, which keeps writers out for an instant and gives up when it has to wait.
    """
    if not retention_days:
        return 0
    before = datetime.now(UTC).date() - timedelta(days=retention_days)
    dropped = 0
    async with pool.acquire(timeout=timeout) as connection:
        while tables := await drop_oldest_partitions(connection, before):
            dropped += tables
    return dropped
