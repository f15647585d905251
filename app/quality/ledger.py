"""The quality ledger: what triggers note is folded into buckets, summed over windows, and checked against the rows."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import asyncpg

from app.database.queries import Connection
from app.measures.buckets import SPANS, kept_since, round_down, tile_window
from app.quality import ledger_queries
from app.quality.queries import read_clock

MINUTE_CHECK_SECONDS = 10.0
"""For the check of one minute; at a rate at which it takes longer the check is worth less than the time."""


FOLD_ROWS = 100_000
"""Changes that one statement folds: a second or two. There are more after an upgrade, or when the job was away."""


async def fold_ledger(connection: Connection, now: datetime) -> None:
    """Fold what was noted since the last time; one process at a time."""
    since = [kept_since(span, now) for span in SPANS]
    while await ledger_queries.fold(connection, SPANS, since, FOLD_ROWS) == FOLD_ROWS:
        pass
    await ledger_queries.prune(connection, SPANS, since)


async def rebuild_day(connection: Connection, day: date, timeout: float) -> bool:
    """Make the ledger of a day (UTC) anew from the rows; False when retention has dropped them, and nothing is done.

    All statements see one snapshot. What others commit meanwhile is not in it, and stays noted beside what is made.
    """
    since = datetime(day.year, day.month, day.day, tzinfo=UTC)
    async with connection.transaction(isolation="repeatable_read"):
        await ledger_queries.lock_ledger(connection, timeout)
        if await ledger_queries.read_dropped_before(connection) > since:
            return False
        await ledger_queries.replace_cells(connection, since, since + timedelta(days=1), timeout)
        await fold_ledger(connection, await read_clock(connection))
    return True


async def sum_windows(connection: Connection, starts: Sequence[datetime], now: datetime) -> list[asyncpg.Record]:
    """Sum the buckets from each start to `now`; rows carry the position of their start."""
    tiles = [(position, tile) for position, since in enumerate(starts) for tile in tile_window(since, now)]
    return await ledger_queries.read_windows(
        connection,
        [position for position, _ in tiles],
        [tile.span for _, tile in tiles],
        [tile.since for _, tile in tiles],
        [tile.until for _, tile in tiles],
    )


async def count_mismatch(connection: Connection, minute: datetime) -> int:
    """Compare the ledger with the rows of one minute; return how many rows it is wrong by, 0 when it is exact."""
    until = minute + timedelta(minutes=1)
    differences = await ledger_queries.find_differences(connection, minute, until, SPANS[0], MINUTE_CHECK_SECONDS)
    return sum(_weigh_difference(row) for row in differences)


async def find_day_differences(
    connection: Connection, day: date, now: datetime, timeout: float
) -> list[tuple[int, asyncpg.Record]]:
    """Compare the ledger of a day (UTC) with the rows, in buckets of every span that is kept: (span, ledger - rows)."""
    since = datetime(day.year, day.month, day.day, tzinfo=UTC)
    until = since + timedelta(days=1)
    differences: list[tuple[int, asyncpg.Record]] = []
    for span in SPANS:
        first = max(since, round_down(kept_since(span, now), span) + timedelta(seconds=span))
        if first < until:
            rows = await ledger_queries.find_differences(connection, first, until, span, timeout)
            differences += ((span, row) for row in rows)
    return differences


def _weigh_difference(row: asyncpg.Record) -> int:
    """Return by how many rows a cell differs; a wrong sum counts as a row."""
    return abs(row["rows"]) or 1
