"""The server without its log, for comparison: `python unlogged.py serve ...` answers and stores no rows."""

from collections.abc import Sequence

from app.commands.parser import run
from app.prediction_log.committed_log import CommittedLog
from app.prediction_log.log import PredictionLog
from app.prediction_log.record import Rows
from app.prediction_log.spooled_log import SpooledLog


async def forget(self: PredictionLog, rows: Sequence[Rows]) -> None:
    """Store nothing."""


if __name__ == "__main__":
    SpooledLog.store = CommittedLog.store = forget  # type: ignore[method-assign]
    run()
