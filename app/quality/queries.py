"""SQL of labels and of the quality job."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec

from app.database.queries import Connection
from app.quality.measures import Measures

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


KNOWN_VERSIONS = "SELECT name, version, classes, positive_class FROM model_version ORDER BY name, version"


async def fetch_versions(connection: Connection) -> list[asyncpg.Record]:
    """Fetch what is known of every version: (name, version, classes, positive_class)."""
    return await connection.fetch(KNOWN_VERSIONS)


class QualityResult(msgspec.Struct, frozen=True):
    """The quality of one version in one role over one window. A row of `quality_result`.

    `confusion` is {label: {predicted class: rows}}; the matrix in `measures` has the same in the order of the classes.
    """

    model_name: str
    model_version: str
    role: str
    window_name: str
    computed_at: datetime
    since: datetime
    until: datetime
    label_delay_seconds: float | None
    confusion: dict[str, dict[str, int]]
    measures: Measures


STORE_RESULTS = """
INSERT INTO quality_result (model_name, model_version, role, window_name, computed_at, since, until,
    label_delay_seconds, confusion, measures)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::timestamptz, $6::timestamptz, $7::timestamptz,
    $8::double precision, $9::jsonb, $10::jsonb)
ON CONFLICT (model_name, model_version, role, window_name) DO UPDATE SET computed_at = excluded.computed_at,
    since = excluded.since, until = excluded.until, label_delay_seconds = excluded.label_delay_seconds,
    confusion = excluded.confusion, measures = excluded.measures
"""

REMOVE_OLD_RESULTS = """
DELETE FROM quality_result
WHERE computed_at < $1::timestamptz
    AND (window_name = ANY ($2::text[]) OR computed_at < $1::timestamptz - interval '7 days')
"""
"""Other windows are those of a replica with other settings, or of settings that were changed."""

APPEND_TO_HISTORY = """
INSERT INTO quality_history (minute, model_name, model_version, role, window_name, since, until, state, predictions,
    labelled, f1, f1_lower, f1_upper, corrected_f1, baseline_f1, precision, recall, accuracy)
SELECT date_bin('1 minute', computed_at, 'epoch'), model_name, model_version, role, window_name, since, until, m.state,
    m.predictions, m.labelled, m.f1, m.f1_lower, m.f1_upper, m.corrected_f1, m.baseline_f1, m.precision, m.recall,
    m.accuracy
FROM quality_result CROSS JOIN jsonb_to_record(measures) AS m (state text, predictions bigint, labelled bigint,
    f1 double precision, f1_lower double precision, f1_upper double precision, corrected_f1 double precision,
    baseline_f1 double precision, precision double precision, recall double precision, accuracy double precision)
WHERE computed_at = $1::timestamptz
ON CONFLICT (minute, model_name, model_version, role, window_name) DO UPDATE SET since = excluded.since,
    until = excluded.until, state = excluded.state, predictions = excluded.predictions, labelled = excluded.labelled,
    f1 = excluded.f1, f1_lower = excluded.f1_lower, f1_upper = excluded.f1_upper,
    corrected_f1 = excluded.corrected_f1, baseline_f1 = excluded.baseline_f1, precision = excluded.precision,
    recall = excluded.recall, accuracy = excluded.accuracy
"""

THIN_HISTORY = """
DELETE FROM quality_history old
WHERE minute < $1::timestamptz - interval '400 days'
    OR minute >= $1::timestamptz - interval '8 days' AND minute < $1::timestamptz - interval '1 day' AND EXISTS (
        SELECT FROM quality_history later
        WHERE later.minute > old.minute AND later.minute < date_bin('1 hour', old.minute, 'epoch') + interval '1 hour'
            AND later.model_name = old.model_name AND later.model_version = old.model_version
            AND later.role = old.role AND later.window_name = old.window_name
    )
"""
"""Keeps the last result of each hour. It looks a week back, in case that the job was away."""


async def store_results(
    connection: Connection, computed_at: datetime, windows: Sequence[str], results: Sequence[QualityResult]
) -> None:
    """Make these, computed at that time, the results of these windows."""
    rows = [msgspec.structs.astuple(result) for result in results]
    values = [(*row[:-2], *(msgspec.json.encode(value).decode() for value in row[-2:])) for row in rows]
    await connection.executemany(STORE_RESULTS, values)
    await connection.execute(REMOVE_OLD_RESULTS, computed_at, windows)
    await connection.execute(APPEND_TO_HISTORY, computed_at)
    await connection.execute(THIN_HISTORY, computed_at)


FETCH_RESULTS = """
SELECT model_name, model_version, role, window_name, computed_at, since, until, label_delay_seconds, confusion, measures
FROM quality_result WHERE window_name = ANY ($1::text[]) ORDER BY model_name, model_version, role, until - since
"""


async def fetch_results(connection: Connection, windows: Sequence[str]) -> list[QualityResult]:
    """Fetch the latest results of these windows, shortest window first within a version and role."""
    rows = await connection.fetch(FETCH_RESULTS, windows)
    return [
        QualityResult(
            **{
                **row,
                "confusion": msgspec.json.decode(row["confusion"]),
                "measures": msgspec.json.decode(row["measures"], type=Measures),
            }
        )
        for row in rows
    ]


FETCH_HISTORY_OF_RESULTS = """
SELECT minute, since, until, state, predictions, labelled, f1, f1_lower, f1_upper, corrected_f1, baseline_f1,
    precision, recall, accuracy
FROM quality_history
WHERE model_name = $1::text AND model_version = $2::text AND role = $3::text AND window_name = $4::text
    AND minute >= $5::timestamptz AND minute <= $6::timestamptz
ORDER BY minute DESC LIMIT $7::integer
"""


async def fetch_result_history(
    connection: Connection, names: tuple[str, str, str, str], since: datetime, until: datetime, limit: int
) -> list[asyncpg.Record]:
    """Fetch past results of (model, version, role, window), newest first."""
    return await connection.fetch(FETCH_HISTORY_OF_RESULTS, *names, since, until, limit)


READ_CHECK = "SELECT minute, mismatch_rows FROM quality_check"
STORE_CHECK = "UPDATE quality_check SET minute = $1::timestamptz, mismatch_rows = $2::bigint"


async def read_check(connection: Connection) -> tuple[datetime, int]:
    """Return the newest minute that the ledger was checked at, and by how many rows it was wrong."""
    row = await connection.fetchrow(READ_CHECK)
    assert row is not None
    return row["minute"], row["mismatch_rows"]


async def store_check(connection: Connection, minute: datetime, mismatch_rows: int) -> None:
    """Keep the outcome of a check for all replicas."""
    await connection.execute(STORE_CHECK, minute, mismatch_rows)
