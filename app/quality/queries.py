"""SQL of the quality job: its lock, its clock, its results and their history."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from app.database.queries import Connection
from app.measures.measure import Measures

TRY_JOB_LOCK = "SELECT pg_try_advisory_xact_lock(hashtext('scorekeeper quality job'))"
LAST_COMPUTED = """
SELECT max(computed_at) FILTER (WHERE computed_at <= now() + interval '1 second') > now() - $1::interval
FROM quality_result
"""
"""Results with a future time were computed before the clock was set back: they do not count as fresh."""

READ_CLOCK = "SELECT date_trunc('milliseconds', now())"


async def try_job_lock(connection: Connection) -> bool:
    """Try to become the only replica that runs the job until this transaction ends; return whether that worked."""
    locked: bool = await connection.fetchval(TRY_JOB_LOCK)
    return locked


async def is_computed_within(connection: Connection, age: timedelta) -> bool:
    """Return whether a replica has stored results within `age`."""
    return bool(await connection.fetchval(LAST_COMPUTED, age))


async def read_clock(connection: Connection) -> datetime:
    """Return the database's time at the start of the transaction, in whole milliseconds like prediction ids."""
    now: datetime = await connection.fetchval(READ_CLOCK)
    return now


LATEST = datetime(9999, 12, 31, tzinfo=UTC)
"""Latest end of a period; a later end is replaced by it, so that adding a millisecond cannot overflow."""


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
"""Other windows belong to a replica with other settings, or to settings that have changed since."""

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
"""Keeps the last result of each hour. It looks back a week, in case the job has not run for some time."""


async def store_results(
    connection: Connection, computed_at: datetime, windows: Sequence[str], results: Sequence[QualityResult]
) -> None:
    """Replace the stored results of these windows by these, and append them to the history."""
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
    """Fetch the latest results of these windows, by version and role, the shortest window first."""
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
STORE_CHECK = """
INSERT INTO quality_check (minute, mismatch_rows) VALUES ($1::timestamptz, $2::bigint)
ON CONFLICT (one_row) DO UPDATE SET minute = excluded.minute, mismatch_rows = excluded.mismatch_rows
"""

_NEVER_CHECKED = datetime.fromtimestamp(0, UTC)


async def read_check(connection: Connection) -> tuple[datetime, int | None]:
    """Return the newest minute for which the ledger was checked, and by how many rows it was wrong.

    None: the check took too long.
    """
    row = await connection.fetchrow(READ_CHECK)
    return (_NEVER_CHECKED, 0) if row is None else (row["minute"], row["mismatch_rows"])


async def store_check(connection: Connection, minute: datetime, mismatch_rows: int | None) -> None:
    """Store the result of a check, for all replicas."""
    await connection.execute(STORE_CHECK, minute, mismatch_rows)
