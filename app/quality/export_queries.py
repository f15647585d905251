"""SQL of the export: the labelled predictions of a period, fetched in small parts to save memory."""

from collections.abc import AsyncIterator
from datetime import datetime

import asyncpg
import msgspec

from app.database.queries import Connection

FETCH_ROWS = 2_000
"""Rows fetched from the cursor at a time."""


class ExportFilter(msgspec.Struct, frozen=True):
    """Which live predictions to export: since <= created_at <= until, as in GET /quality; None means all."""

    since: datetime
    until: datetime
    model: str | None
    version: str | None
    labelled_only: bool


FROM_FILTERED = """
FROM prediction_log p
JOIN model_version v ON v.name = p.model_name AND v.version = p.model_version
LEFT JOIN prediction_label l ON l.prediction_id = p.prediction_id AND l.label IS NOT NULL
    AND l.prediction_id >= prediction_id_at($1::timestamptz)
    AND l.prediction_id < prediction_id_at(date_trunc('milliseconds', $2::timestamptz) + interval '1 ms')
WHERE p.prediction_id >= prediction_id_at($1::timestamptz)
    AND p.prediction_id < prediction_id_at(date_trunc('milliseconds', $2::timestamptz) + interval '1 ms')
    AND p.role = 'live'
    AND ($3::text IS NULL OR p.model_name = $3::text)
    AND ($4::text IS NULL OR p.model_version = $4::text)
    AND (l.prediction_id IS NOT NULL OR NOT $5::boolean)
"""

COUNT_BY_VERSION = (
    "SELECT p.model_name, p.model_version, v.classes, v.inputs, count(*) AS rows"
    + FROM_FILTERED
    + "GROUP BY p.model_name, p.model_version, v.classes, v.inputs ORDER BY p.model_name, p.model_version"
)

SELECT_ROWS = (
    """
SELECT p.prediction_id, p.created_at, p.model_name, p.model_version, p.external_id, p.predicted_class, p.score,
    l.label, l.observed_at, l.received_at, p.probabilities, p.features"""
    + FROM_FILTERED
    + "ORDER BY p.prediction_id"
)


async def count_by_version(connection: Connection, wanted: ExportFilter) -> list[asyncpg.Record]:
    """Count the rows of each version that has some: (model_name, model_version, classes, inputs, rows)."""
    return await connection.fetch(COUNT_BY_VERSION, *msgspec.structs.astuple(wanted))


async def stream_rows(connection: Connection, wanted: ExportFilter) -> AsyncIterator[list[asyncpg.Record]]:
    """Yield lists of FETCH_ROWS rows, oldest first. Needs an open transaction."""
    cursor = await connection.cursor(SELECT_ROWS, *msgspec.structs.astuple(wanted))
    while rows := await cursor.fetch(FETCH_ROWS):
        yield rows
