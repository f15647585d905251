"""The jobs, and when they run. A job counts its own failures: APScheduler only logs them."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import get_args

import asyncpg
from prometheus_client import Counter

from app import metrics
from app.database.migrate import prepare_schema
from app.database.pool import (
    ConnectionFailure,
    DatabaseUnreachableError,
    borrow_connection,
    check_server,
    describe_connection_error,
)
from app.errors import StartupError, UnavailableError
from app.measures.measure import QualityState
from app.prediction_log.failures import explain_job_failure
from app.prediction_log.partitions import drop_old_partitions, make_partitions_ahead
from app.quality.label_status_queries import read_label_status
from app.quality.label_sweep import sweep_pending
from app.quality.queries import fetch_results, read_check
from app.quality.refresh import KnownVersion, QualitySettings, refresh_results
from app.scheduling import ScheduledJob, Work
from app.serving.model import Model
from app.serving.ordering import version_order
from app.serving.queries import fetch_versions, register_version
from app.serving.repository import ModelRepository
from app.state import Lifecycle, Scoreboard

logger = logging.getLogger(__name__)

PARTITION_INTERVAL = timedelta(hours=1)
"""Between two runs of the partition job. Partitions are made a week ahead, so many runs may fail without harm."""

DATABASE_INTERVAL = timedelta(seconds=5)
"""Between two attempts to prepare a database that was unreachable at the start, or whose schema is behind."""

STATES = (*get_args(QualityState), "stale")
"""Values of the label `state` of model_quality_state."""

STALE_INTERVALS = 4
"""Results older than this many intervals of the quality job are stale: the job fails, or no replica can run it."""

MODEL_INTERVAL = timedelta(seconds=2)
"""Between two scans of MODEL_DIR; a new version is served after two scans."""

REGISTER_SECONDS = 5.0
"""To register a version in PostgreSQL; if it takes longer, the version is served first and registered later."""

CLOCK_INTERVAL = timedelta(seconds=5)
"""Between two readings of the database's clock, which cost a millisecond."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What the operator has chosen for the jobs."""

    migrate: bool
    quality: QualitySettings
    f1_interval: timedelta
    retention_days: int


class Jobs:
    """The jobs of one replica, and what they work on."""

    def __init__(
        self,
        url: str,
        pool: asyncpg.Pool,
        repository: ModelRepository,
        lifecycle: Lifecycle,
        scoreboard: Scoreboard,
        settings: JobSettings,
    ) -> None:
        self._url = url
        self._pool = pool
        self._repository = repository
        self._lifecycle = lifecycle
        self._scoreboard = scoreboard
        self._settings = settings

    async def prepare_database(self) -> None:
        """Bring the schema to head, if MIGRATE_ON_START, and make partitions. Raises StartupError with one line."""
        await check_server(self._url)
        try:
            schema = await prepare_schema(self._url, migrate=self._settings.migrate)
            if schema != "behind":
                await make_partitions_ahead(self._pool, timeout=5)
        except ConnectionFailure as error:
            raise StartupError(describe_connection_error(self._url, error)) from error
        self._lifecycle.note_schema(schema)
        await self.read_clock()

    async def register_model(self, model: Model) -> bool:
        """Register a version; return False if it is registered with other classes. Raises UnavailableError."""
        if self._lifecycle.database_trouble is not None:
            raise UnavailableError("the database is not prepared")
        signature = model.signature
        async with borrow_connection(self._pool) as connection, asyncio.timeout(REGISTER_SECONDS):
            return await register_version(
                connection,
                model.name,
                model.version,
                model.sha256,
                signature.classes,
                signature.positive_class,
                signature.describe_features(),
            )

    async def sweep_labels(self) -> None:
        """Apply labels that came before their prediction was stored, drop those that are too old, count the others."""
        error = await attempt("pending labels could not be applied", self._sweep, metrics.LABEL_SWEEP_FAILURES)
        self._note_job("label_job_failed", "labels that came before their prediction are not applied", error)

    async def _sweep(self) -> None:
        async with self._pool.acquire(timeout=5) as connection:
            await sweep_pending(connection)
            labels = await read_label_status(connection)
        self._scoreboard.labels = labels
        metrics.PENDING_LABELS.value, metrics.REJECTED_LABELS.value = labels.pending, labels.rejected

    async def refresh_quality(self) -> None:
        """Compute the results unless another replica does; export the stored results, or the last ones read."""
        failed = await attempt("the quality job failed", self._compute_results)
        unread = await attempt("the quality results could not be read, the last known are kept", self._read_results)
        if error := failed or unread:
            metrics.QUALITY_FAILURES.inc()
        self._note_job("quality_job_failed", "the quality numbers are not computed", error)
        _export_results(self._scoreboard, self._settings.quality.objective)

    async def _compute_results(self) -> None:
        loaded = {(served.model.name, served.model.version) for served in self._repository.all()}
        async with self._pool.acquire(timeout=5) as connection:
            versions = [KnownVersion(*row) for row in await fetch_versions(connection)]
        await refresh_results(self._pool, self._settings.quality, versions, loaded, self._settings.f1_interval / 2)

    async def _read_results(self) -> None:
        async with self._pool.acquire(timeout=5) as connection:
            results = await fetch_results(connection, self._settings.quality.window_names)
            _, mismatch = await read_check(connection)
        results.sort(key=lambda result: (result.model_name, version_order(result.model_version)))
        # Nothing waits between here and the export: GET /quality and the gauges always show the same results.
        self._scoreboard.note_results(results)
        metrics.LEDGER_MISMATCH.value = mismatch

    async def keep_partitions(self) -> None:
        """Make partitions for the coming days and drop old ones; the log makes a missing partition itself."""
        what = "partitions could not be made ahead, or old ones not dropped"
        error = await attempt(what, self._make_and_drop_partitions, metrics.PARTITION_FAILURES)
        self._note_job("partition_job_failed", what, error)

    async def _make_and_drop_partitions(self) -> None:
        made = await make_partitions_ahead(self._pool, timeout=5)
        dropped = await drop_old_partitions(self._pool, self._settings.retention_days, timeout=5)
        if made or dropped:
            logger.info("made %d partitions, dropped %d", made, dropped)

    def _note_job(self, code: str, what: str, error: Exception | None) -> None:
        """Note for /health that a job failed, or that it succeeded."""
        self._lifecycle.note_job(code, None if error is None else f"{what}: {explain_job_failure(error)}")

    async def read_clock(self) -> None:
        """Read the database's clock; while that fails, the monotonic clock tells its time."""
        try:
            async with self._pool.acquire(timeout=5) as connection:
                await self._scoreboard.clock.read(connection)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.debug("the database's clock cannot be read: %s", error)

    async def watch_database(self) -> None:
        """Prepare the database if it was unreachable at the start, or if its schema was behind."""
        if self._lifecycle.database_trouble is None:
            return
        try:
            await self.prepare_database()
        except (StartupError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.warning("the database cannot be prepared yet: %s", error)
            if not isinstance(error, DatabaseUnreachableError):
                self._lifecycle.note_refusal()
        else:
            if self._lifecycle.database_trouble is None:
                logger.info("the database is prepared")


async def attempt(what: str, work: Work, failures: Counter | None = None) -> Exception | None:
    """Do work; count a failure and return it. Log one line for a PostgreSQL error, a traceback for a bug."""
    try:
        await work()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        logger.warning("%s: %s: %s", what, type(error).__name__, error)
        failure: Exception = error
    except Exception as error:
        logger.exception("%s", what)
        failure = error
    else:
        return None
    if failures is not None:
        failures.inc()
    return failure


def schedule_jobs(jobs: Jobs, look_for_models: Work, f1_interval: timedelta) -> list[ScheduledJob]:
    """Return each job with its interval and the delay of its first run.

    Labels are swept a quarter of an interval before each refresh but the first, so a slow sweep does not delay a
    refresh. A label that came before its row is counted within five quarters of an interval after its next try. The
    pause between two tries is half the label's age, at most an hour: a label that has waited long is counted later.
    """
    return [
        ScheduledJob(jobs.refresh_quality, f1_interval),
        ScheduledJob(jobs.sweep_labels, f1_interval, delay=f1_interval * 3 / 4),
        ScheduledJob(jobs.keep_partitions, PARTITION_INTERVAL),
        ScheduledJob(jobs.watch_database, DATABASE_INTERVAL),
        ScheduledJob(jobs.read_clock, CLOCK_INTERVAL),
        ScheduledJob(look_for_models, MODEL_INTERVAL),
    ]


def _export_results(scoreboard: Scoreboard, objective: float | None) -> None:
    """Set the gauges to the results of the role `live`. An undefined measure has no sample; the state says why."""
    for gauge in (*metrics.MODEL_MEASURES.values(), metrics.MODEL_QUALITY_STATE):
        gauge.clear()
    metrics.MODEL_F1_OBJECTIVE.value = objective
    for result in scoreboard.results:
        if result.role != "live":
            continue
        names = (result.model_name, result.model_version, result.window_name)
        for measure, gauge in metrics.MODEL_MEASURES.items():
            value = getattr(result.measures, measure)
            if value is not None:
                gauge.labels(*names).set(value)
        for state in STATES:
            metrics.MODEL_QUALITY_STATE.labels(*names, state).set(state == scoreboard.find_state(result))
    if scoreboard.results:
        metrics.QUALITY_LAST_SUCCESS.set(max(result.computed_at for result in scoreboard.results).timestamp())
