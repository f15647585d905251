"""The prediction log at one of its three levels of durability: what a 200 waits for."""

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
"""What a request hands its rows to."""


def open_log(
    pool: asyncpg.Pool, durability: Durability, directory: Path, max_bytes: int, on_death: OnTaskDeath
) -> AbstractAsyncContextManager[PredictionLog]:
    """Open the log of a level until exit; the spool in `directory` is for the levels that have one."""
    inserter = Inserter(pool)
    if durability == "database":
        return open_committed_log(inserter, on_death)
    return open_spooled_log(inserter, directory, max_bytes, on_death, fsync=durability == "fsync")
