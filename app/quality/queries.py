"""SQL of labels and of the quality job."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec

from app.database.queries import Connection

FIND_BY_ID = """
SELECT wanted.position, p.prediction_id, p.created_at, v.classes
FROM unnest($1::bigint[], $2::uuid[]) AS wanted (position, prediction_id)
CROSS JOIN LATERAL (
    SELECT prediction_id, created_at, model_name, model_version
    FROM prediction_log WHERE prediction_id = wanted.prediction_id LIMIT 1
) p
LEFT JOIN model_version v ON v.name = p.model_name AND v.version = p.model_version
"""
"""LATERAL with LIMIT keeps it one pruned index look-up per label, whatever the planner thinks of the log's size."""

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
    """Find stored predictions: (position, prediction_id, created_at, classes)."""
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
FROM (
    SELECT *, row_number() OVER (PARTITION BY prediction_id, observed_at, label ORDER BY position) AS repetition
    FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::text[])
        WITH ORDINALITY AS given (prediction_id, label, observed_at, received_at, outcome, position)
) event
WHERE outcome <> 'unchanged' OR repetition = 1 AND NOT EXISTS (
    SELECT FROM prediction_label_history known
    WHERE known.prediction_id = event.prediction_id AND known.observed_at = event.observed_at
        AND known.label IS NOT DISTINCT FROM event.label
)
ORDER BY position
"""


async def append_history(
    connection: Connection,
    prediction_ids: Sequence[UUID],
    labels: Sequence[str | None],
    observed_at: Sequence[datetime],
    received_at: Sequence[datetime],
    outcomes: Sequence[str],
) -> None:
    """Keep every label that was received; an exact repetition of one that is kept already is not kept again."""
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


TRY_JOB_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('scorekeeper quality job'))"
LAST_COMPUTED = """
SELECT max(computed_at) FILTER (WHERE computed_at <= now() + interval '1 second') > now() - $1::interval
FROM quality_result
"""
"""Results from the future were computed before the clock was set back: they do not count as fresh."""

READ_CLOCK = "SELECT date_trunc('milliseconds', now())"


async def try_job_lock(connection: Connection) -> bool:
    """Become the one replica that runs the job until this transaction ends."""
    locked: bool = await connection.fetchval(TRY_JOB_LOCK)
    return locked


async def is_computed_within(connection: Connection, age: timedelta) -> bool:
    """Tell whether some replica has stored results within `age`."""
    return bool(await connection.fetchval(LAST_COMPUTED, age))


async def read_clock(connection: Connection) -> datetime:
    """Return the database's clock at the start of the transaction, in whole milliseconds as prediction ids are."""
    now: datetime = await connection.fetchval(READ_CLOCK)
    return now


COUNT_CONFUSION = """
SELECT p.model_name, p.model_version, p.predicted_class, l.label, count(*) AS rows
FROM prediction_log p
LEFT JOIN prediction_label l ON l.prediction_id = p.prediction_id
    AND l.prediction_id >= prediction_id_at($1::timestamptz) AND l.prediction_id < prediction_id_at($2::timestamptz)
WHERE p.prediction_id >= prediction_id_at($1::timestamptz) AND p.prediction_id < prediction_id_at($2::timestamptz)
    AND p.role = 'live'
GROUP BY p.model_name, p.model_version, p.predicted_class, l.label
"""

KNOWN_VERSIONS = "SELECT name, version, classes, positive_class FROM model_version ORDER BY name, version"


LATEST = datetime(9999, 12, 31, tzinfo=UTC)
"""Later ends of a period mean this one: there is room left for a millisecond more."""


async def count_confusion(connection: Connection, since: datetime, until: datetime) -> list[asyncpg.Record]:
    """Count live predictions with since <= created_at <= until by version, predicted class and label (null: none)."""
    until = min(until, LATEST)
    last_ms = until.replace(microsecond=until.microsecond // 1000 * 1000)
    return await connection.fetch(COUNT_CONFUSION, since, last_ms + timedelta(milliseconds=1))


async def fetch_versions(connection: Connection) -> list[asyncpg.Record]:
    """Fetch what is known of every version: (name, version, classes, positive_class)."""
    return await connection.fetch(KNOWN_VERSIONS)


class QualityResult(msgspec.Struct, frozen=True):
    """The quality of one version over one window; `f1` is None unless the state is `ok`. A row of `quality_result`."""

    model_name: str
    model_version: str
    window_name: str
    computed_at: datetime
    since: datetime
    until: datetime
    state: str
    average: str
    f1: float | None
    predictions: int
    labelled: int
    confusion: dict[str, dict[str, int]]


STORE_RESULTS = """
INSERT INTO quality_result (model_name, model_version, window_name, computed_at, since, until, state, average, f1,
    predictions, labelled, confusion)
VALUES ($1::text, $2::text, $3::text, $4::timestamptz, $5::timestamptz, $6::timestamptz, $7::text, $8::text,
    $9::double precision, $10::bigint, $11::bigint, $12::jsonb)
ON CONFLICT (model_name, model_version, window_name) DO UPDATE SET computed_at = excluded.computed_at,
    since = excluded.since, until = excluded.until, state = excluded.state, average = excluded.average,
    f1 = excluded.f1, predictions = excluded.predictions, labelled = excluded.labelled, confusion = excluded.confusion
"""

FETCH_RESULTS = """
SELECT model_name, model_version, window_name, computed_at, since, until, state, average, f1, predictions, labelled,
    confusion
FROM quality_result WHERE window_name = ANY ($1::text[]) ORDER BY model_name, model_version, until - since
"""


async def store_results(connection: Connection, results: Sequence[QualityResult]) -> None:
    """Replace the results of these versions and windows."""
    rows = [msgspec.structs.astuple(result) for result in results]
    await connection.executemany(STORE_RESULTS, [(*row[:-1], msgspec.json.encode(row[-1]).decode()) for row in rows])


async def fetch_results(connection: Connection, windows: Sequence[str]) -> list[QualityResult]:
    """Fetch the latest results of these windows, shortest window first within a version."""
    rows = await connection.fetch(FETCH_RESULTS, windows)
    return [QualityResult(**{**row, "confusion": msgspec.json.decode(row["confusion"])}) for row in rows]
