"""SQL of labels: finding their predictions, the label in force, its history, and labels that wait."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from app.database.queries import Connection

FIND_BY_ID = """
SELECT wanted.position, p.prediction_id, p.created_at, v.classes
FROM unnest($1::bigint[], $2::uuid[]) AS wanted (position, prediction_id)
CROSS JOIN LATERAL (
    SELECT prediction_id, created_at, model_name, model_version
    FROM prediction_log WHERE prediction_id = wanted.prediction_id
        AND prediction_id BETWEEN ($2::uuid[])[1] AND ($2::uuid[])[cardinality($2::uuid[])] LIMIT 1
) p
LEFT JOIN model_version v ON v.name = p.model_name AND v.version = p.model_version
"""
"""LATERAL with LIMIT keeps it one pruned index look-up per label, whatever the planner thinks of the log's size.

The first and the last id are constants to the planner, which leaves out all other days: to plan for 800 days takes
23 ms, for one 0.3 ms.
"""

FIND_BY_EXTERNAL_ID = """
SELECT wanted.position, p.prediction_id, p.created_at, v.classes
FROM unnest($1::bigint[], $2::text[]) AS wanted (position, external_id)
CROSS JOIN LATERAL (
    SELECT prediction_id, created_at, model_name, model_version
    FROM prediction_log WHERE external_id = wanted.external_id ORDER BY prediction_id DESC LIMIT 100
) p
LEFT JOIN model_version v ON v.name = p.model_name AND v.version = p.model_version
"""
"""A repeated request has made several predictions under one key: the label holds for all, up to the newest 100."""


async def find_by_id(
    connection: Connection, positions: Sequence[int], prediction_ids: Sequence[UUID]
) -> list[asyncpg.Record]:
    """Find stored predictions: (position, prediction_id, created_at, classes). The ids must ascend."""
    return await connection.fetch(FIND_BY_ID, positions, prediction_ids)


async def find_by_external_id(
    connection: Connection, positions: Sequence[int], external_ids: Sequence[str]
) -> list[asyncpg.Record]:
    """Find stored predictions: (position, prediction_id, created_at, classes), several per position possible."""
    return await connection.fetch(FIND_BY_EXTERNAL_ID, positions, external_ids)


UPSERT_LABELS = """
INSERT INTO prediction_label AS l (prediction_id, label, observed_at, received_at)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[])
ON CONFLICT (prediction_id) DO UPDATE SET label = excluded.label, observed_at = excluded.observed_at,
    received_at = excluded.received_at, previous_label = l.label, revision = l.revision + 1
WHERE excluded.observed_at > l.observed_at
    OR (excluded.observed_at = l.observed_at AND excluded.received_at >= l.received_at
        AND excluded.label IS DISTINCT FROM l.label)
RETURNING prediction_id, label, previous_label, revision
"""
"""`l` in the update is the row as it is under its lock, so `previous_label` is exact under concurrent writers too."""


async def upsert_labels(
    connection: Connection,
    prediction_ids: Sequence[UUID],
    labels: Sequence[str | None],
    observed_at: Sequence[datetime],
    received_at: Sequence[datetime],
) -> list[asyncpg.Record]:
    """Let the newest observation win; return (prediction_id, label, previous_label, revision) of rows written.

    Ids must be different, and ascending, so that concurrent writers lock in one order.
    """
    return await connection.fetch(UPSERT_LABELS, prediction_ids, labels, observed_at, received_at)


APPEND_HISTORY = """
INSERT INTO prediction_label_history (prediction_id, label, observed_at, received_at, outcome)
SELECT prediction_id, label, observed_at, received_at, outcome
FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::text[])
    AS event (prediction_id, label, observed_at, received_at, outcome)
WHERE outcome <> 'unchanged' OR NOT EXISTS (
    SELECT FROM prediction_label_history known
    WHERE known.prediction_id = event.prediction_id AND known.observed_at = event.observed_at
        AND known.label IS NOT DISTINCT FROM event.label
        AND known.prediction_id BETWEEN ($1::uuid[])[1] AND ($1::uuid[])[cardinality($1::uuid[])]
)
"""
"""A statement of its own, after the upsert: only one that begins under the row's lock sees what another has kept."""


async def append_history(
    connection: Connection,
    prediction_ids: Sequence[UUID],
    labels: Sequence[str | None],
    observed_at: Sequence[datetime],
    received_at: Sequence[datetime],
    outcomes: Sequence[str],
) -> None:
    """Keep every label that was received; an exact repetition of one that is kept already is not kept again.

    Ids must be different, and ascending.
    """
    await connection.execute(APPEND_HISTORY, prediction_ids, labels, observed_at, received_at, outcomes)


FETCH_HISTORY = """
SELECT label, observed_at, received_at, outcome FROM prediction_label_history
WHERE prediction_id = $1::uuid ORDER BY history_id
"""


async def fetch_history(connection: Connection, prediction_id: UUID) -> list[asyncpg.Record]:
    """Fetch every label of a prediction in the order of arrival."""
    return await connection.fetch(FETCH_HISTORY, prediction_id)


ADD_PENDING = """
INSERT INTO pending_label (prediction_id, external_id, label, observed_at, received_at, next_try_at)
SELECT *, now() FROM unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
"""

TAKE_PENDING = """
SELECT pending_id, prediction_id, external_id, label, observed_at, received_at FROM pending_label
WHERE next_try_at <= now() ORDER BY next_try_at, pending_id LIMIT $1::integer FOR UPDATE SKIP LOCKED
"""

REMOVE_PENDING = "DELETE FROM pending_label WHERE pending_id = ANY ($1::bigint[])"

POSTPONE_PENDING = """
UPDATE pending_label
SET next_try_at = now() + least(greatest((now() - received_at) / 2, interval '1 second'), $2::interval)
WHERE pending_id = ANY ($1::bigint[])
"""
"""Tries become rarer with age, so that labels whose prediction never comes cost nothing to speak of."""


async def add_pending(
    connection: Connection,
    prediction_ids: Sequence[UUID | None],
    external_ids: Sequence[str | None],
    labels: Sequence[str | None],
    observed_at: Sequence[datetime],
    received_at: Sequence[datetime],
) -> None:
    """Keep labels until their prediction is stored."""
    await connection.execute(ADD_PENDING, prediction_ids, external_ids, labels, observed_at, received_at)


async def take_pending(connection: Connection, limit: int) -> list[asyncpg.Record]:
    """Lock up to `limit` pending labels that are due for another try."""
    return await connection.fetch(TAKE_PENDING, limit)


async def remove_pending(connection: Connection, pending_ids: Sequence[int]) -> None:
    """Remove pending labels that have been applied or have expired."""
    await connection.execute(REMOVE_PENDING, pending_ids)


async def postpone_pending(connection: Connection, pending_ids: Sequence[int], longest: timedelta) -> None:
    """Look at these again after half their age, `longest` at most."""
    await connection.execute(POSTPONE_PENDING, pending_ids, longest)
