"""What the scheduler runs and when. A job counts its own failures: APScheduler only logs them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from app import metrics
from app.database.migrate import prepare_schema
from app.database.pool import ConnectionFailure, check_server, describe_connection_error
from app.errors import StartupError
from app.prediction_log.partitions import make_partitions_ahead
from app.prediction_log.queries import register_version
from app.quality.queries import QualityResult, fetch_results
from app.quality.scoring import STATES, refresh_results
from app.serving.model import Model
from app.settings import F1Average, QualityWindow
from app.state import Lifecycle

logger = logging.getLogger(__name__)

PARTITION_INTERVAL = timedelta(hours=1)
"""Between two looks ahead; partitions are made for a week, so that many may fail."""

DATABASE_INTERVAL = timedelta(seconds=5)
"""Between two looks at a database that was away at the start, or whose schema is behind."""

STOP_SECONDS = 5.0
"""For a job that is under way when the server stops; then it is cancelled, and its transaction rolled back."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """What the operator has chosen for the jobs."""

    migrate: bool
    windows: tuple[QualityWindow, ...]
    f1_average: F1Average | None
    f1_interval: timedelta


class Jobs:
    """The jobs of one replica, and what they work on."""

    def __init__(
        self, url: str, pool: asyncpg.Pool, models: Sequence[Model], lifecycle: Lifecycle, settings: JobSettings
    ) -> None:
        self._url = url
        self._pool = pool
        self._models = models
        self._lifecycle = lifecycle
        self._settings = settings

    async def prepare_database(self) -> None:
        """Bring the schema to head, make partitions, record the loaded versions. Raises StartupError with one line."""
        await check_server(self._url)
        try:
            schema = await prepare_schema(self._url, migrate=self._settings.migrate)
            if schema != "behind":
                await make_partitions_ahead(self._pool, timeout=5)
                await self._register_models()
        except ConnectionFailure as error:
            raise StartupError(describe_connection_error(self._url, error)) from error
        self._lifecycle.schema = schema

    async def _register_models(self) -> None:
        async with self._pool.acquire(timeout=5) as connection:
            for model in self._models:
                signature = model.signature
                if not await register_version(
                    connection,
                    model.name,
                    model.version,
                    model.sha256,
                    signature.classes,
                    signature.positive_class,
                    signature.describe_features(),
                ):
                    raise StartupError(
                        f"model {model.name} version {model.version} has been served with other classes: "
                        "give this file a new version"
                    )

    async def refresh_quality(self) -> None:
        """Compute the results unless another replica does, and export what is stored."""
        try:
            settings = self._settings
            await refresh_results(self._pool, settings.windows, settings.f1_average, settings.f1_interval / 2)
            async with self._pool.acquire(timeout=5) as connection:
                export_results(await fetch_results(connection, [window.name for window in settings.windows]))
        except Exception:
            metrics.QUALITY_FAILURES.inc()
            logger.exception("the quality job failed")

    async def make_partitions(self) -> None:
        """Keep partitions ahead of the clock; the log makes a missing one itself when it comes to that."""
        try:
            made = await make_partitions_ahead(self._pool, timeout=5)
        except Exception:
            metrics.PARTITION_FAILURES.inc()
            logger.exception("partitions could not be made ahead")
        else:
            if made:
                logger.info("made %d partitions", made)

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


@asynccontextmanager
async def open_scheduler(jobs: Jobs, f1_interval: timedelta) -> AsyncIterator[None]:
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
        (jobs.make_partitions, PARTITION_INTERVAL),
        (jobs.watch_database, DATABASE_INTERVAL),
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


def export_results(results: Sequence[QualityResult]) -> None:
    """Show stored results in the gauges; a result without F1 has no sample, its state says why."""
    for gauge in (metrics.MODEL_F1, metrics.MODEL_LABELLED, metrics.MODEL_COVERAGE, metrics.MODEL_QUALITY_STATE):
        gauge.clear()
    for result in results:
        names = (result.model_name, result.model_version, result.window_name)
        if result.f1 is not None:
            metrics.MODEL_F1.labels(*names).set(result.f1)
        metrics.MODEL_LABELLED.labels(*names).set(result.labelled)
        if result.predictions:
            metrics.MODEL_COVERAGE.labels(*names).set(result.labelled / result.predictions)
        for state in STATES:
            metrics.MODEL_QUALITY_STATE.labels(*names, state).set(state == result.state)
    if results:
        metrics.QUALITY_LAST_SUCCESS.set(max(result.computed_at for result in results).timestamp())
