"""Open the prediction log at one of its three levels of durability, which decide when a request gets its 200."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeAlias

import asyncpg

from app.prediction_log.committed_log import CommittedLog, open_committed_log
from app.prediction_log.inserter import Inserter
from app.prediction_log.spooled_log import SpooledLog, open_spooled_log
from app.settings import Durability
from app.tasks import OnTaskDeath

PredictionLog: TypeAlias = SpooledLog | CommittedLog
"""The log at either kind of level: it stores the rows of requests."""


def open_log(
    pool: asyncpg.Pool, durability: Durability, directory: Path, max_bytes: int, on_death: OnTaskDeath
) -> AbstractAsyncContextManager[PredictionLog]:
    """Open the log of a level until exit; only the levels fsync and os use the spool in `directory`."""
    if durability == "database":
        return open_committed_log(Inserter(pool), on_death)
    return open_spooled_log(pool, directory, max_bytes, on_death, fsync=durability == "fsync")
