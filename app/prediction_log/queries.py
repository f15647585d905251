"""SQL of the prediction log: store batches, make and drop partitions, read rows and pages."""

from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID

import asyncpg
import msgspec

from app.database.queries import Connection, read_count
from app.prediction_log.record import ERASED_VALUES, FeatureValues, Record

POSTGRES_TYPES = {
    UUID: "uuid",
    datetime: "timestamptz",
    bool: "boolean",
    int: "bigint",
    float: "real",
    str: "text",
    list[float]: "real[]",
    FeatureValues: "jsonb",
}
"""The column type for each type of a field; `None` in a field's type is ignored."""


def list_columns(record: type[msgspec.Struct]) -> dict[str, str]:
    """Return the column and type of each field of a struct; raise TypeError for a field without a type."""
    columns: dict[str, str] = {}
    for field in msgspec.structs.fields(record):
        of = next((one for one in POSTGRES_TYPES if field.type in (one, one | None)), None)
        if of is None:
            raise TypeError(f"{record.__name__}.{field.name} is {field.type}, which has no type in POSTGRES_TYPES")
        columns[field.name] = POSTGRES_TYPES[of]
    return columns


COLUMNS = list_columns(Record)
"""The columns of the rows that are written, with their types."""


def _select_column(name: str) -> str:
    if name not in ERASED_VALUES:
        return f"batch.{name}"
    return f"CASE WHEN erased_at IS NULL THEN batch.{name} ELSE {ERASED_VALUES[name]} END"


INSERT_ROWS = f"""
INSERT INTO prediction_log ({", ".join(COLUMNS)})
SELECT {", ".join(map(_select_column, COLUMNS))}
FROM jsonb_to_recordset($1::jsonb) AS batch ({", ".join(f"{name} {of}" for name, of in COLUMNS.items())})
LEFT JOIN LATERAL (SELECT erased_at FROM erasure WHERE prediction_id = batch.prediction_id LIMIT 1) erased ON true
ON CONFLICT DO NOTHING
"""  # noqa: S608  # made from constants only
"""With one JSON parameter, rows from the spool need not be decoded, and the client needs 1 us per row, not 6.

A copy of an erased row is stored without its values, whenever it comes. LATERAL with LIMIT makes that one index look-up
per row, whatever size the planner expects `erasure` to have; it costs 0.1 to 0.2 ms per statement, mostly planning.
"""


async def insert_rows(connection: Connection, rows: Sequence[bytes], timeout: float) -> int:
    """Store encoded records in one statement, all or none; return how many were new."""
    return read_count(await connection.execute(INSERT_ROWS, (b"[" + b",".join(rows) + b"]").decode(), timeout=timeout))


MAY_READ_CLUSTER = """
SELECT has_function_privilege('pg_control_system()', 'EXECUTE') AS system,
    has_function_privilege('pg_walfile_name(pg_lsn)', 'EXECUTE')
    AND has_function_privilege('pg_current_wal_lsn()', 'EXECUTE') AND NOT pg_is_in_recovery() AS timeline
"""
"""Managed hosts refuse some of these functions. A statement that calls one would fail, and fill the server's log."""

SYSTEM = "SELECT system_identifier::text FROM pg_control_system()"
TIMELINE = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"


async def read_cluster_history(connection: Connection) -> str | None:
    """Return the system identifier and the timeline, which changes at once when a standby is promoted.

    Without the right to read the identifier it is left out; None: the server may not or cannot tell its timeline.
    """
    may_read = await connection.fetchrow(MAY_READ_CLUSTER)
    assert may_read is not None
    if not may_read["timeline"]:
        return None
    system = await connection.fetchval(SYSTEM) if may_read["system"] else "PostgreSQL"
    return f"{system} timeline {await connection.fetchval(TIMELINE)}"


MAKE_PARTITIONS = "SELECT make_prediction_partitions($1::date, $2::date)"


async def make_partitions(connection: Connection, first_day: date, last_day: date) -> int:
    """Make the missing partitions of these days (UTC); return how many tables were made."""
    made: int = await connection.fetchval(MAKE_PARTITIONS, first_day, last_day)
    return made


READ_DAY = "SELECT (now() AT TIME ZONE 'UTC')::date"


async def read_day(connection: Connection) -> date:
    """Return the database's day (UTC)."""
    day: date = await connection.fetchval(READ_DAY)
    return day


DROP_OLDEST_PARTITIONS = "SELECT drop_oldest_prediction_partitions($1::date)"


async def drop_oldest_partitions(connection: Connection, before: date) -> int:
    """Drop the partitions of the oldest day if it is before `before`; return how many tables were dropped."""
    dropped: int = await connection.fetchval(DROP_OLDEST_PARTITIONS, before)
    return dropped


SELECT_PREDICTION = """
SELECT p.prediction_id, p.created_at, p.model_name, p.model_version, p.predicted_class, p.score, p.probabilities,
    p.features, p.external_id, p.request_id, p.role, v.classes,
    l.prediction_id IS NOT NULL AND l.label IS NOT NULL AS labelled, l.label, l.observed_at, l.received_at,
    (SELECT erased_at FROM erasure WHERE erasure.prediction_id = p.prediction_id) AS erased_at
FROM prediction_log p
LEFT JOIN model_version v ON v.name = p.model_name AND v.version = p.model_version
LEFT JOIN LATERAL (
    SELECT prediction_id, label, observed_at, received_at FROM prediction_label
    WHERE prediction_id = p.prediction_id LIMIT 1
) l ON true
"""
"""LATERAL with LIMIT makes the join with labels one index look-up per row, in one partition."""

SELECT_BY_ID = SELECT_PREDICTION + "WHERE p.prediction_id = $1::uuid"

SELECT_PAGE = (
    SELECT_PREDICTION
    + """
WHERE p.prediction_id >= prediction_id_at($1::timestamptz)
    AND p.prediction_id < least(prediction_id_at($2::timestamptz), $3::uuid)
    AND ($4::text IS NULL OR p.model_name = $4::text)
    AND ($5::text IS NULL OR p.model_version = $5::text)
    AND ($6::text IS NULL OR p.predicted_class = $6::text)
    AND ($7::boolean IS NULL OR (l.label IS NOT NULL) = $7::boolean)
    AND ($8::text IS NULL OR p.external_id = $8::text)
ORDER BY p.prediction_id DESC
LIMIT $9::integer
"""
)

SELECT_BY_EXTERNAL_ID = SELECT_PAGE.replace(
    "($8::text IS NULL OR p.external_id = $8::text)", "p.external_id = $8::text"
)
"""The same, with a condition that can use the index on external_id."""


async def fetch_prediction(connection: Connection, prediction_id: UUID) -> asyncpg.Record | None:
    """Fetch one row with its label; return None when it is not stored."""
    return await connection.fetchrow(SELECT_BY_ID, prediction_id)


class PageFilter(msgspec.Struct, frozen=True):
    """Which predictions a page has: since <= created_at < until, ids below `before`; None means all."""

    since: datetime
    until: datetime
    before: UUID
    model: str | None
    version: str | None
    predicted_class: str | None
    labelled: bool | None
    external_id: str | None


async def fetch_page(connection: Connection, page: PageFilter, limit: int) -> list[asyncpg.Record]:
    """Fetch up to `limit` rows with their labels, newest first."""
    statement = SELECT_PAGE if page.external_id is None else SELECT_BY_EXTERNAL_ID
    return await connection.fetch(statement, *msgspec.structs.astuple(page), limit)
