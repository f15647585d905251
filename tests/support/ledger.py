"""What the ledger must say, counted from the rows in Python, for tests."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg

from app.database.queries import Connection
from app.quality.ledger import fold_ledger
from app.quality.queries import read_clock

Key = tuple[object, ...]

DAY = 86_400

COUNTS = ("rows", "score_sum", "score_square_sum", "delay_sum")

READ_ROWS = """
SELECT p.created_at, p.model_name, p.model_version, p.role, p.score::double precision AS score, p.predicted_class,
    l.label, l.received_at
FROM prediction_log p LEFT JOIN prediction_label l USING (prediction_id)
"""

READ_LEDGER = """
SELECT minute, model_name, model_version, role, score_bin, predicted_class, label,
    sum(rows)::bigint AS rows, sum(score_sum)::bigint AS score_sum, sum(score_square_sum)::bigint AS score_square_sum,
    sum(delay_sum)::bigint AS delay_sum
FROM (
    SELECT starts_at AS minute, model_name, model_version, role, score_bin, predicted_class, label, rows, score_sum,
        score_square_sum, delay_sum
    FROM quality_bucket WHERE span = $1
    UNION ALL
    SELECT date_bin(make_interval(secs => $1), minute, 'epoch'), model_name, model_version, role, score_bin,
        predicted_class, label, rows, score_sum, score_square_sum, delay_sum
    FROM quality_delta
) noted
GROUP BY 1, 2, 3, 4, 5, 6, 7
"""


async def read_ledger(connection: asyncpg.Connection, span: int = DAY) -> dict[Key, tuple[int, ...]]:
    """Return the counts of every cell that has some, folded or not, by default by the day: days are kept for ever."""
    rows = await connection.fetch(READ_LEDGER, span)
    counts = {tuple(row.values())[:7]: tuple(row[name] for name in COUNTS) for row in rows}
    return {key: count for key, count in counts.items() if any(count)}


async def count_cells(connection: asyncpg.Connection, span: int = DAY) -> dict[Key, tuple[int, ...]]:
    """Return the same, counted here from all rows."""
    counts: Counter[tuple[Key, str]] = Counter()
    keys = set()
    for row in await connection.fetch(READ_ROWS):
        score = min(max(row["score"], 0.0), 1.0)
        cell = (
            datetime.fromtimestamp(math.floor(row["created_at"].timestamp() / span) * span, UTC),
            *(row[name] for name in ("model_name", "model_version", "role")),
            min(math.floor(score * 100), 99),
            row["predicted_class"],
        )
        delay = 0
        labels: list[str | None] = [None]
        if row["label"] is not None:
            labels.append(row["label"])
            delay = max(0, (row["received_at"] - row["created_at"]) // timedelta(milliseconds=1))
        for label in labels:
            key = (*cell, label)
            keys.add(key)
            counts[key, "rows"] += 1
            counts[key, "score_sum"] += round(score * 1e9)
            counts[key, "score_square_sum"] += round(score**2 * 1e9)
            counts[key, "delay_sum"] += 0 if label is None else delay
    return {key: tuple(counts[key, name] for name in COUNTS) for key in keys}


async def assert_exact(connection: asyncpg.Connection) -> None:
    """Assert that the ledger equals a full count of the rows, before and after a fold."""
    expected = await count_cells(connection)
    assert await read_ledger(connection) == expected
    await fold(connection)
    assert await connection.fetchval("SELECT count(*) FROM quality_delta") == 0
    assert await read_ledger(connection) == expected


async def fold(connection: Connection) -> None:
    """Fold as the job does."""
    async with connection.transaction():
        await fold_ledger(connection, await read_clock(connection))
