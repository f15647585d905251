"""What the scheduler runs and when. A job counts its own failures: APScheduler only logs them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import get_args

import asyncpg
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import Counter

from app import metrics
from app.database.migrate import prepare_schema
from app.database.pool import ConnectionFailure, borrow_connection, check_server, describe_connection_error
from app.errors import StartupError, UnavailableError
from app.measures.measure import QualityState
from app.prediction_log.partitions import drop_old_partitions, make_partitions_ahead
from app.prediction_log.queries import register_version
from app.quality.queries import fetch_results, read_check
from app.quality.refresh import QualitySettings, refresh_results
from app.serving.model import Model
from app.serving.reloading import Reloader
from app.serving.repository import ModelRepository
from app.state import Lifecycle, Scoreboard

logger = logging.getLogger(__name__)

PARTITION_INTERVAL = timedelta(hours=1)
"""Between two looks ahead; partitions are made for a week, so that many may fail."""

DATABASE_INTERVAL = timedelta(seconds=5)
"""Between two looks at a database that was away at the start, or whose schema is behind."""

STATES = (*get_args(QualityState), "stale")
"""Values of the state metric's label."""

STALE_INTERVALS = 4
"""Results that are older than so many intervals of the job say nothing of now: it fails, or no replica can run it."""

MODEL_INTERVAL = timedelta(seconds=2)
"""Between two looks at MODEL_DIR; a new version is served after two of them."""

REGISTER_SECONDS = 5.0
"""For PostgreSQL to take a version; one that takes longer is served first and registered later."""

STOP_SECONDS = 5.0
"""For a job that is under way when the server stops; then it is cancelled, and its transaction rolled back."""


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
        """Bring the schema to head and make partitions. Raises StartupError with one line."""
        await check_server(self._url)
        try:
            schema = await prepare_schema(self._url, migrate=self._settings.migrate)
            if schema != "behind":
                await make_partitions_ahead(self._pool, timeout=5)
        except ConnectionFailure as error:
            raise StartupError(describe_connection_error(self._url, error)) from error
        self._lifecycle.note_schema(schema)

    async def register_model(self, model: Model) -> bool:
        """Record a version; False: it is known with other classes; UnavailableError: PostgreSQL cannot be asked."""
        if self._lifecycle.schema in (None, "behind"):
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

    async def refresh_quality(self) -> None:
        """Compute the results unless another replica does, and export what is stored, or was when it could be read."""
        with survive("the quality job failed", metrics.QUALITY_FAILURES):
            loaded = {(served.model.name, served.model.version) for served in self._repository.all()}
            await refresh_results(self._pool, self._settings.quality, loaded, self._settings.f1_interval / 2)
        with survive("the quality results could not be read, the last known ones stay", metrics.QUALITY_FAILURES):
            await self._read_results()
        export_results(self._scoreboard, self._settings.quality.objective)

    async def _read_results(self) -> None:
        async with self._pool.acquire(timeout=5) as connection:
            results = await fetch_results(connection, self._settings.quality.window_names)
            _, mismatch = await read_check(connection)
        # Without a wait before they are exported: GET /quality and the gauges tell the same at any moment.
        self._scoreboard.results, metrics.LEDGER_MISMATCH.value = results, mismatch

    async def keep_partitions(self) -> None:
        """Make partitions ahead of the clock and drop old ones; the log makes a missing one itself."""
        with survive("partitions could not be made ahead, or old ones not dropped", metrics.PARTITION_FAILURES):
            made = await make_partitions_ahead(self._pool, timeout=5)
            dropped = await drop_old_partitions(self._pool, self._settings.retention_days, timeout=5)
            if made or dropped:
                logger.info("made %d partitions, dropped %d", made, dropped)

    async def watch_database(self) -> None:
        """Prepare a database that was away at the start, or that somebody else has to migrate."""
        if self._lifecycle.schema not in (None, "behind"):
            return
        try:
            await self.prepare_database()
        except (StartupError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            logger.warning("the database cannot be prepared yet: %s", error)
        else:
            if self._lifecycle.schema != "behind":
                logger.info("the database is prepared")


@contextmanager
def survive(what: str, failures: Counter) -> Iterator[None]:
    """Count a failure and go on: a line for what PostgreSQL says or is, which lasts as long as an outage does."""
    try:
        yield
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        failures.inc()
        logger.warning("%s: %s: %s", what, type(error).__name__, error)
    except Exception:
        failures.inc()
        logger.exception("%s", what)


@asynccontextmanager
async def open_scheduler(jobs: Jobs, reloader: Reloader, f1_interval: timedelta) -> AsyncIterator[None]:
    """Run the jobs until exit: each at once, then every interval, never twice at a time."""
    scheduler = AsyncIOScheduler(timezone=UTC, job_defaults={"coalesce": True, "misfire_grace_time": None})
    running: set[asyncio.Task[None]] = set()

    async def run(job: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await job()
        finally:
            running.discard(task)

    for job, interval in (
        (jobs.refresh_quality, f1_interval),
        (jobs.keep_partitions, PARTITION_INTERVAL),
        (jobs.watch_database, DATABASE_INTERVAL),
        (reloader.look, MODEL_INTERVAL),
    ):
        seconds = interval.total_seconds()
        scheduler.add_job(run, "interval", args=(job,), seconds=seconds, next_run_time=datetime.now(UTC))
    scheduler.start()
    try:
        yield
    finally:
        scheduler.pause()
        if running:
            await asyncio.wait(running, timeout=STOP_SECONDS)
        scheduler.shutdown(wait=False)


def export_results(scoreboard: Scoreboard, objective: float | None) -> None:
    """Show the results of the role `live` in the gauges; what is undefined has no sample, the state says why."""
    for gauge in (*metrics.MODEL_MEASURES.values(), metrics.MODEL_QUALITY_STATE):
        gauge.clear()
    metrics.MODEL_F1_OBJECTIVE.value = objective
    now = datetime.now(UTC)
    for result in scoreboard.results:
        if result.role != "live":
            continue
        names = (result.model_name, result.model_version, result.window_name)
        for measure, gauge in metrics.MODEL_MEASURES.items():
            value = getattr(result.measures, measure)
            if value is not None:
                gauge.labels(*names).set(value)
        for state in STATES:
            metrics.MODEL_QUALITY_STATE.labels(*names, state).set(state == scoreboard.find_state(result, now))
    if scoreboard.results:
        metrics.QUALITY_LAST_SUCCESS.set(max(result.computed_at for result in scoreboard.results).timestamp())
