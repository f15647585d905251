"""SQL of the quality job."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from app.database.queries import Connection

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
