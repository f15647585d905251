"""Daily partitions of the log and its labels: made ahead by a job, and on demand when an insert finds none."""

from datetime import UTC, datetime, timedelta

import asyncpg

from app.prediction_log.queries import make_partitions

DAYS_AHEAD = 7
"""How far ahead partitions are made: a week in which the job may fail before anybody notices."""


async def make_partitions_ahead(pool: asyncpg.Pool, timeout: float) -> int:
    """Make the partitions from yesterday, for clocks that differ, to DAYS_AHEAD; return how many tables were made."""
    today = datetime.now(UTC).date()
    async with pool.acquire(timeout=timeout) as connection:
        return await make_partitions(connection, today - timedelta(days=1), today + timedelta(days=DAYS_AHEAD))
