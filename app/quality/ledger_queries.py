"""SQL of the quality ledger: fold recorded changes, sum windows, compare with the rows, rebuild."""

from collections.abc import Sequence
from datetime import date, datetime

import asyncpg

from app.database.queries import Connection

FOLD = """
WITH noted AS (
    DELETE FROM quality_delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM quality_delta LIMIT $3::integer)) RETURNING *
), folded AS (
    INSERT INTO quality_bucket AS bucket (span, starts_at, model_name, model_version, role, score_bin, predicted_class,
        label, rows, score_sum, score_square_sum, delay_sum)
    SELECT level.span, date_bin(make_interval(secs => level.span), minute, 'epoch'), model_name, model_version, role,
        score_bin, predicted_class, label, sum(rows), sum(score_sum), sum(score_square_sum), sum(delay_sum)
    FROM (
        SELECT minute, model_name, model_version, role, score_bin, predicted_class, label, sum(rows) AS rows,
            sum(score_sum) AS score_sum, sum(score_square_sum) AS score_square_sum, sum(delay_sum) AS delay_sum
        FROM noted GROUP BY 1, 2, 3, 4, 5, 6, 7
    ) noted
    CROSS JOIN unnest($1::integer[], $2::timestamptz[]) AS level (span, kept_since)
    WHERE date_bin(make_interval(secs => level.span), minute, 'epoch') >= level.kept_since
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    HAVING (sum(rows), sum(score_sum), sum(score_square_sum), sum(delay_sum)) <> (0, 0, 0, 0)
    ON CONFLICT (span, starts_at, model_name, model_version, role, score_bin, predicted_class, label) DO UPDATE SET
        rows = bucket.rows + excluded.rows, score_sum = bucket.score_sum + excluded.score_sum,
        score_square_sum = bucket.score_square_sum + excluded.score_square_sum,
        delay_sum = bucket.delay_sum + excluded.delay_sum
)
SELECT count(*) FROM noted
"""

PRUNE = """
DELETE FROM quality_bucket WHERE ctid = ANY (ARRAY(
    SELECT old.ctid
    FROM unnest($1::integer[], $2::timestamptz[]) AS level (span, kept_since)
    CROSS JOIN LATERAL (
        SELECT ctid FROM quality_bucket WHERE span = level.span AND starts_at < level.kept_since OFFSET 0
    ) old
))
"""
"""OFFSET 0 makes the planner read one range of the index per span; with another join it would read every bucket."""


async def fold(connection: Connection, spans: Sequence[int], kept_since: Sequence[datetime], limit: int) -> int:
    """Move up to `limit` recorded changes into the buckets of every span; return how many changes there were."""
    folded: int = await connection.fetchval(FOLD, spans, kept_since, limit)
    return folded


async def prune(connection: Connection, spans: Sequence[int], kept_since: Sequence[datetime]) -> None:
    """Remove the buckets that are older than `kept_since` of their span."""
    await connection.execute(PRUNE, spans, kept_since)


ARRAYS_OF_CELLS = """
array_agg(score_bin) AS bins, array_agg(predicted_class) AS predicted, array_agg(label) AS labels,
    array_agg(rows) AS rows, array_agg(score_sum / 1e9::double precision) AS score_sums,
    array_agg(score_square_sum / 1e9::double precision) AS score_square_sums, sum(delay_sum)::bigint AS delay_sum
"""

READ_WINDOWS = f"""
SELECT position, model_name, model_version, role, {ARRAYS_OF_CELLS}
FROM (
    SELECT tile.position, model_name, model_version, role, score_bin, predicted_class, label, sum(rows)::bigint AS rows,
        sum(score_sum)::bigint AS score_sum, sum(score_square_sum)::bigint AS score_square_sum,
        sum(delay_sum)::bigint AS delay_sum
    FROM unnest($1::integer[], $2::integer[], $3::timestamptz[], $4::timestamptz[])
        AS tile (position, span, since, until)
    CROSS JOIN LATERAL (
        SELECT * FROM quality_bucket
        WHERE span = tile.span AND starts_at >= tile.since AND starts_at < tile.until OFFSET 0
    ) bucket
    GROUP BY tile.position, score_bin, predicted_class, label, model_name, model_version, role
    HAVING sum(rows) <> 0
) cell
GROUP BY 1, 2, 3, 4
"""  # noqa: S608  # made from constants only
"""The columns that differ most come first in GROUP BY: when PostgreSQL sorts, it compares fewer texts."""


async def read_windows(
    connection: Connection,
    positions: Sequence[int],
    spans: Sequence[int],
    since: Sequence[datetime],
    until: Sequence[datetime],
) -> list[asyncpg.Record]:
    """Sum the buckets of tiles by window (`position`), version and role; a row has one array per column of a cell."""
    return await connection.fetch(READ_WINDOWS, positions, spans, since, until)


COUNT_BUCKETS = """
SELECT starts_at, predicted_class, score_bin / $7::smallint AS score_bar,
    sum(rows) FILTER (WHERE label IS NULL)::bigint AS predictions,
    coalesce(sum(rows) FILTER (WHERE label IS NOT NULL), 0)::bigint AS labelled,
    coalesce(sum(rows) FILTER (WHERE label = predicted_class), 0)::bigint AS correct
FROM quality_bucket
WHERE model_name = $1::text AND model_version = $2::text AND role = $3::text
    AND span = $4::integer AND starts_at >= $5::timestamptz AND starts_at < $6::timestamptz
GROUP BY GROUPING SETS ((starts_at, predicted_class), (score_bar))
HAVING sum(rows) FILTER (WHERE label IS NULL) <> 0
"""


async def count_buckets(
    connection: Connection, names: tuple[str, str, str], span: int, since: datetime, until: datetime, bins: int
) -> list[asyncpg.Record]:
    """Count the predictions of (model, version, role) in buckets with since <= starts_at < until, in two ways.

    Some rows count by bucket and predicted class; in the others `starts_at` is null, and they count by bars of `bins`
    score bins.
    """
    return await connection.fetch(COUNT_BUCKETS, *names, span, since, until, bins)


RAW_CELLS = """
raw AS MATERIALIZED (
    SELECT date_bin(make_interval(secs => $3::integer), p.created_at, 'epoch') AS starts_at, p.model_name,
        p.model_version, p.role, score_bin(p.score) AS score_bin, p.predicted_class, l.label, count(*) AS rows,
        sum(score_billionths(p.score)) AS score_sum, sum(score_square_billionths(p.score)) AS score_square_sum,
        coalesce(sum(label_delay(p.created_at, l.received_at)) FILTER (WHERE l.label IS NOT NULL), 0) AS delay_sum
    FROM prediction_log p
    LEFT JOIN prediction_label l ON l.prediction_id = p.prediction_id
        AND l.prediction_id >= prediction_id_at($1::timestamptz) AND l.prediction_id < prediction_id_at($2::timestamptz)
    WHERE p.prediction_id >= prediction_id_at($1::timestamptz) AND p.prediction_id < prediction_id_at($2::timestamptz)
    GROUP BY 1, 2, 3, 4, 5, 6, 7
), raw_cell AS (
    SELECT starts_at, model_name, model_version, role, score_bin, predicted_class, NULL AS label,
        sum(rows)::bigint AS rows, sum(score_sum)::bigint AS score_sum,
        sum(score_square_sum)::bigint AS score_square_sum, 0::bigint AS delay_sum
    FROM raw GROUP BY 1, 2, 3, 4, 5, 6
    UNION ALL
    SELECT starts_at, model_name, model_version, role, score_bin, predicted_class, label,
        rows, score_sum, score_square_sum, delay_sum::bigint
    FROM raw WHERE label IS NOT NULL
)
"""
"""The ledger's cells computed from the rows of the log: $1 <= created_at < $2, by buckets of $3 seconds."""

COUNT_PERIOD = f"""
WITH {RAW_CELLS}
SELECT model_name, model_version, role, {ARRAYS_OF_CELLS}
FROM (
    SELECT model_name, model_version, role, score_bin, predicted_class, label, sum(rows)::bigint AS rows,
        sum(score_sum)::bigint AS score_sum, sum(score_square_sum)::bigint AS score_square_sum,
        sum(delay_sum)::bigint AS delay_sum
    FROM raw_cell GROUP BY 1, 2, 3, 4, 5, 6
) cell
GROUP BY 1, 2, 3
"""  # noqa: S608

LONGEST_SPAN = 2**31 - 1
"""One bucket for a whole period: the largest span that the parameter allows."""


async def count_period(connection: Connection, since: datetime, until: datetime) -> list[asyncpg.Record]:
    """Sum as `read_windows` does, but from the rows of the log with since <= created_at < until."""
    return await connection.fetch(COUNT_PERIOD, since, until, LONGEST_SPAN)


FIND_DIFFERENCES = f"""
WITH {RAW_CELLS}
SELECT starts_at, model_name, model_version, role, score_bin, predicted_class, label, sum(rows)::bigint AS rows,
    sum(score_sum)::bigint AS score_sum, sum(score_square_sum)::bigint AS score_square_sum,
    sum(delay_sum)::bigint AS delay_sum
FROM (
    SELECT starts_at, model_name, model_version, role, score_bin, predicted_class, label, rows, score_sum,
        score_square_sum, delay_sum
    FROM quality_bucket WHERE span = $3::integer AND starts_at >= $1::timestamptz AND starts_at < $2::timestamptz
    UNION ALL
    SELECT date_bin(make_interval(secs => $3::integer), minute, 'epoch'), model_name, model_version, role, score_bin,
        predicted_class, label, rows, score_sum, score_square_sum, delay_sum
    FROM quality_delta WHERE minute >= $1::timestamptz AND minute < $2::timestamptz
    UNION ALL
    SELECT starts_at, model_name, model_version, role, score_bin, predicted_class, label, -rows, -score_sum,
        -score_square_sum, -delay_sum
    FROM raw_cell
) counted
GROUP BY 1, 2, 3, 4, 5, 6, 7
HAVING (sum(rows), sum(score_sum), sum(score_square_sum), sum(delay_sum)) <> (0, 0, 0, 0)
ORDER BY 1, 2, 3, 4, 5, 6, 7
"""  # noqa: S608
"""One statement has one snapshot, and a row commits together with the changes that its triggers record."""


async def find_differences(
    connection: Connection, since: datetime, until: datetime, span: int, timeout: float
) -> list[asyncpg.Record]:
    """Return the cells in which the ledger and the rows differ: ledger minus rows. Both times must be bucket edges."""
    return await connection.fetch(FIND_DIFFERENCES, since, until, span, timeout=timeout)


LOCK_LEDGER = """
LOCK TABLE prediction_log IN ACCESS SHARE MODE; LOCK TABLE quality_bucket IN SHARE ROW EXCLUSIVE MODE
"""
"""Keeps retention from dropping rows and the job from folding. LOCK takes no snapshot: the first query does."""

REMOVE_DELTAS = "DELETE FROM quality_delta WHERE minute >= $1::timestamptz AND minute < $2::timestamptz"
REMOVE_BUCKETS = "DELETE FROM quality_bucket WHERE starts_at >= $1::timestamptz AND starts_at < $2::timestamptz"
NOTE_RAW_CELLS = f"""
WITH {RAW_CELLS}
INSERT INTO quality_delta (minute, model_name, model_version, role, score_bin, predicted_class, label, rows, score_sum,
    score_square_sum, delay_sum)
SELECT * FROM raw_cell
"""  # noqa: S608


async def lock_ledger(connection: Connection, timeout: float) -> None:
    """Stop others from folding and from dropping rows until this transaction ends; writers are not blocked."""
    await connection.execute(LOCK_LEDGER, timeout=timeout)


async def replace_cells(connection: Connection, since: datetime, until: datetime, timeout: float) -> None:
    """Replace what the ledger has of whole days by recorded changes, counted from the rows."""
    await connection.execute(REMOVE_DELTAS, since, until, timeout=timeout)
    await connection.execute(REMOVE_BUCKETS, since, until, timeout=timeout)
    await connection.execute(NOTE_RAW_CELLS, since, until, 60, timeout=timeout)


STORED_DAYS = """
SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'prediction_log'::regclass AND c.relname ~ '_[0-9]{8}$'
    AND to_date(right(c.relname, 8), 'YYYYMMDD') >= (
        SELECT CASE WHEN isfinite(dropped_before) THEN (dropped_before AT TIME ZONE 'UTC')::date ELSE '0001-01-01' END
        FROM prediction_retention
    )
ORDER BY 1
"""


async def list_stored_days(connection: Connection) -> list[date]:
    """Return the days (UTC) whose rows are complete: they have partitions, and retention has not dropped them."""
    return [row["day"] for row in await connection.fetch(STORED_DAYS)]


DROPPED_BEFORE = "SELECT greatest(dropped_before, '0001-01-01Z') FROM prediction_retention"


async def read_dropped_before(connection: Connection) -> datetime:
    """Return the time before which retention has dropped predictions and their labels."""
    dropped_before: datetime = await connection.fetchval(DROPPED_BEFORE)
    return dropped_before
