"""The jobs of a replica for tests, without a server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from app.database.pool import open_pool
from app.jobs import Jobs, JobSettings
from app.quality.refresh import QualitySettings
from app.serving.repository import ModelRepository
from app.settings import QualityWindow
from app.state import Lifecycle, Scoreboard

WINDOWS = (QualityWindow("1h", timedelta(hours=1)), QualityWindow("24h", timedelta(hours=24)))


@asynccontextmanager
async def open_jobs(database_url: str, interval: float = 0) -> AsyncIterator[Jobs]:
    """The jobs of a replica of its own, which computes again after half the interval."""
    async with open_pool(database_url, 2) as pool:
        quality = QualitySettings(WINDOWS, average=None, min_labels=50, objective=None)
        settings = JobSettings(migrate=True, quality=quality, f1_interval=timedelta(seconds=interval), retention_days=0)
        repository = ModelRepository("none", {})
        yield Jobs(database_url, pool, repository, Lifecycle(), Scoreboard(timedelta(minutes=1)), settings)
