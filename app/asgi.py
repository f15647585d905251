"""The composition root: open everything in the lifespan, and map paths to handlers."""

import asyncio
import logging
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from types import FrameType
from typing import get_args

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from app import metrics
from app.api import health as ops
from app.api import labels, models, pages, predict, predictions, quality, runbook
from app.api.predict_batch import make_batcher
from app.database.pool import DatabaseUnreachableError, open_database_url, open_pool
from app.errors import ScorekeeperError, StartupError
from app.jobs import STALE_INTERVALS, Jobs, JobSettings, schedule_jobs
from app.logs import AccessLog, configure_logging, open_access_log
from app.open_inference.routes import OPEN_INFERENCE_ROUTES
from app.openapi import document as openapi
from app.prediction_log.failures import FailureKind
from app.prediction_log.log import open_log
from app.quality.labels import Outcome
from app.quality.refresh import QualitySettings
from app.scheduling import open_scheduler
from app.serving.batching import open_executor
from app.serving.loading import load_models
from app.serving.pins import read_pins
from app.serving.reloading import Reloader
from app.serving.repository import ModelRepository
from app.settings import Durability, Settings
from app.state import STATE_KEY, Lifecycle, Scoreboard, State
from app.tasks import stop_server
from app.web.problem import render_error, render_http_exception
from app.web.requests import ACCESS_LOG_KEY, RequestMiddleware
from app.web.series import begin_series_of_routes

logger = logging.getLogger(__name__)

ROUTES = [
    Route("/predict", predict.post_predict, methods=["POST"]),
    Route("/labels", labels.post_labels, methods=["POST"]),
    Route("/predictions", predictions.list_predictions),
    Route("/predictions/{prediction_id}", predictions.get_prediction),
    Route("/quality", quality.get_quality),
    Route("/quality/history", quality.get_history),
    Route("/quality/counts", quality.get_counts),
    Route("/models", models.list_versions),
    Route("/models/{model}/versions/{version}", models.get_version),
    Route("/models/{model}/load", models.load_version, methods=["POST"]),
    Route("/models/{model}/unload", models.unload_version, methods=["POST"]),
    Route("/models/{model}/pin", models.pin_version, methods=["POST"]),
    *OPEN_INFERENCE_ROUTES,
    Route("/health", ops.get_health),
    Route("/health/live", ops.get_liveness),
    Route("/health/ready", ops.get_readiness),
    Route("/metrics", ops.expose_metrics),
    Route("/openapi.json", openapi.get_openapi),
    Route("/", pages.get_model_page),
    Route("/docs", pages.get_docs_page),
    Route("/page/{file}", pages.get_part),
    Route("/runbook/", runbook.get_runbook),
    Route("/runbook/{page}", runbook.get_runbook_page),
]

LOG_CONNECTIONS, REQUEST_CONNECTIONS = 2, 8
"""Sizes of two pools. The log has its own, so that requests that read never use up its connections."""

STOP_DELAY_SECONDS = 1.0
"""From not-ready to the closing of the socket: load balancers need this time to choose other servers."""


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[dict[str, State | AccessLog | None]]:  # noqa: ARG001  # Starlette passes it
    """Open everything in dependency order; close it in reverse order at exit."""
    settings = Settings.from_env()
    configure_logging(settings.log_format)
    _begin_series()
    loaded, pins_file = load_models(settings.model_dir, settings.default_model), settings.data_dir / "pins.json"
    repository = ModelRepository(loaded.default_model, read_pins(pins_file))
    quality_settings = QualitySettings(
        settings.quality_windows, settings.f1_average, settings.min_labels, settings.f1_objective
    )
    f1_interval = timedelta(seconds=settings.f1_interval_seconds)
    lifecycle, scoreboard = Lifecycle(), Scoreboard(max(STALE_INTERVALS * f1_interval, timedelta(minutes=1)))
    spool = settings.data_dir / "spool"
    async with (
        open_access_log(settings.log_format, is_wanted=settings.access_log) as access_log,
        open_database_url(settings.database_url, settings.data_dir) as url,
        open_pool(url, REQUEST_CONNECTIONS) as pool,
        open_pool(url, LOG_CONNECTIONS) as log_pool,
    ):
        job_settings = JobSettings(settings.migrate_on_start, quality_settings, f1_interval, settings.retention_days)
        jobs = Jobs(url, pool, repository, lifecycle, scoreboard, job_settings)
        await _prepare_database(jobs, settings.durability)
        async with (
            open_log(log_pool, settings.durability, spool, settings.spool_max_bytes, stop_server) as log,
            open_executor() as executor,
        ):
            reloader = await Reloader.start(
                loaded,
                settings.model_dir,
                repository,
                make_batcher=lambda model: make_batcher(model, log, executor),
                register=jobs.register_model,
                pins_file=pins_file,
            )
            state = State(
                loop=asyncio.get_running_loop(),
                repository=repository,
                reloader=reloader,
                log=log,
                pool=pool,
                lifecycle=lifecycle,
                durability=settings.durability,
                max_body_bytes=settings.max_body_bytes,
                max_batch_rows=settings.max_batch_rows,
                quality=quality_settings,
                scoreboard=scoreboard,
            )
            del loaded  # this reference would keep the versions of the start in memory after they are unloaded
            async with open_scheduler(schedule_jobs(jobs, reloader.look, f1_interval)):
                with _stop_gently(lifecycle):
                    logger.info("ready: %d model(s), default %s", len(repository.all()), repository.default_model)
                    yield {STATE_KEY: state, ACCESS_LOG_KEY: access_log}


def _begin_series() -> None:
    """Let every counter begin at 0 with the labels that it can have; those of a version begin when it is loaded."""
    begin_series_of_routes(ROUTES)
    for outcome in get_args(Outcome):
        metrics.LABELS.labels(outcome)
    for kind in get_args(FailureKind):
        metrics.LOG_FAILURES.labels(kind)


async def _prepare_database(jobs: Jobs, durability: Durability) -> None:
    """Prepare the database; if it is unreachable and there is a spool, leave this to the job `watch_database`."""
    try:
        await jobs.prepare_database()
    except DatabaseUnreachableError as error:
        if durability == "database":
            raise
        logger.warning("starting without PostgreSQL, predictions wait on disk: %s", error)


@contextmanager
def _stop_gently(lifecycle: Lifecycle) -> Iterator[None]:
    """On SIGTERM, go not-ready at once; STOP_DELAY_SECONDS later call uvicorn's handler, which closes the socket."""
    loop = asyncio.get_running_loop()
    uvicorn_handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(uvicorn_handler):
        yield  # not under uvicorn: there is no handler that ours could call
        return

    def stop(number: int, frame: FrameType | None) -> None:
        lifecycle.stop()
        loop.call_soon_threadsafe(loop.call_later, STOP_DELAY_SECONDS, uvicorn_handler, number, frame)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        lifecycle.stop()
        signal.signal(signal.SIGTERM, uvicorn_handler)


starlette = Starlette(
    routes=ROUTES,
    lifespan=_lifespan,
    exception_handlers={
        ScorekeeperError: render_error,
        HTTPException: render_http_exception,
        Exception: render_error,
    },
)
starlette.router.redirect_slashes = False
requests = RequestMiddleware(starlette)


async def main(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request or the lifespan; report a StartupError in one line, without a traceback."""
    if scope["type"] != "lifespan":
        await requests(scope, receive, send)
        return

    async def send_one_line(message: Message) -> None:
        error = sys.exc_info()[1]  # Starlette sends the traceback as the message while it handles the error
        if message["type"] == "lifespan.startup.failed" and isinstance(error, StartupError):
            message["message"] = f"error: {error}"
        await send(message)

    await starlette(scope, receive, send_one_line)
