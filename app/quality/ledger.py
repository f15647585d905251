"""The quality ledger: fold the changes that triggers recorded into buckets, sum windows, compare with the rows."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta

import asyncpg

from app.database.queries import Connection
from app.measures.buckets import SPANS, kept_since, round_down, tile_window
from app.quality import ledger_queries
from app.quality.queries import read_clock

FOLD_ROWS = 100_000
"""Changes folded by one statement, in a second or two. There are more after an upgrade, or when no job has run."""


async def fold_ledger(connection: Connection, now: datetime) -> None:
    """Fold the changes that triggers recorded since the last fold. Only one process may do this at a time."""
    since = [kept_since(span, now) for span in SPANS]
    while await ledger_queries.fold(connection, SPANS, since, FOLD_ROWS) == FOLD_ROWS:
        pass
    await ledger_queries.prune(connection, SPANS, since)


async def rebuild_day(connection: Connection, day: date, timeout: float) -> bool:
    """Rebuild the ledger of a day (UTC) from the rows; return False, unchanged, when retention has dropped the rows.

    All statements see one snapshot. Changes that others commit later are not in it; the triggers record them, and a
    later fold adds them.
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
    """Sum the buckets from each start to `now`; `position` in a row is the index of its start."""
    tiles = [(position, tile) for position, since in enumerate(starts) for tile in tile_window(since, now)]
    return await ledger_queries.read_windows(
        connection,
        [position for position, _ in tiles],
        [tile.span for _, tile in tiles],
        [tile.since for _, tile in tiles],
        [tile.until for _, tile in tiles],
    )


async def count_mismatch(connection: Connection, minute: datetime, timeout: float) -> int:
    """Compare the ledger with the rows of one minute; return by how many rows it is wrong, 0 when it is right."""
    until = minute + timedelta(minutes=1)
    differences = await ledger_queries.find_differences(connection, minute, until, SPANS[0], timeout)
    return sum(_weigh_difference(row) for row in differences)


async def find_day_differences(
    connection: Connection, day: date, now: datetime, timeout: float
) -> list[tuple[int, asyncpg.Record]]:
    """Compare the ledger of a day (UTC) with the rows, in buckets of every kept span; return (span, ledger - rows)."""
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
    """Return by how many rows a cell differs; a cell with wrong sums only counts as one row."""
    return abs(row["rows"]) or 1
