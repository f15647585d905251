"""The prediction log at one of its three levels of durability: what a 200 waits for, and what is wrong with it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from app import metrics
from app.errors import UnavailableError
from app.prediction_log.committer import Committer
from app.prediction_log.failures import FailureKind
from app.prediction_log.inserter import Inserter
from app.prediction_log.record import Rows
from app.prediction_log.shipper import Shipper
from app.settings import Durability
from app.spool.journal import Journal, open_journal
from app.spool.segment import encode_frame
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long the end of the process waits for the spool to be shipped; what is left is shipped at the next start."""


@dataclass(frozen=True, slots=True)
class LogTrouble:
    """Something that is wrong with the log: a code for machines, words for the operator without data of rows."""

    code: str
    detail: str


class PredictionLog:
    """What a request hands its rows to. With a journal a 200 waits for the disk, else for the COMMIT."""

    def __init__(self, inserter: Inserter, journal: Journal | None) -> None:
        self.journal = journal
        self.shipper = None if journal is None else Shipper(journal, inserter)
        self.committer = Committer(inserter) if journal is None else None

    async def store(self, rows: Sequence[Rows]) -> None:
        """Return when all rows are promised to be stored; raise UnavailableError when they are not."""
        count = sum([part.count for part in rows])
        try:
            if self.journal is not None:
                frames = [encode_frame(part.payload, part.count) for part in rows]
                await self.journal.append(b"".join(frames), count)
            elif self.committer is not None:
                await self.committer.store(rows)
        except UnavailableError:
            metrics.LOG_REFUSED.inc(count)
            raise
        metrics.LOG_ANSWERED.inc(count)

    def find_refusal(self) -> LogTrouble | None:
        """Say why `store` refuses now; None while it can keep its promise."""
        if self.journal is not None and self.journal.failure is not None:
            return LogTrouble(self.journal.failure.code, self.journal.failure.reason)
        return self._find_failure(self.committer)

    def find_trouble(self) -> LogTrouble | None:
        """Say why rows do not reach PostgreSQL; None while they do."""
        return self._find_failure(self.shipper or self.committer)

    def _find_failure(self, sender: Shipper | Committer | None) -> LogTrouble | None:
        if sender is None or sender.failure is None:
            return None
        detail = "PostgreSQL takes no predictions: " + EXPLANATIONS[sender.failure.kind]
        return LogTrouble(f"log_{sender.failure.kind}", detail)

    def export(self) -> None:
        """Bring the gauges up to date."""
        if self.committer is not None:
            metrics.LOG_PENDING.set(self.committer.pending_rows)
        if self.journal is not None and self.shipper is not None:
            metrics.LOG_PENDING.set(self.shipper.pending_rows)
            metrics.LOG_LAG.set(self.shipper.lag_seconds)
            metrics.SPOOL_BYTES.set(self.journal.used_bytes)
            metrics.SPOOL_MAX_BYTES.value = self.journal.max_bytes

    async def drain(self, seconds: float) -> None:
        """Wait until everything is in PostgreSQL, at most `seconds`."""
        if self.shipper is None:
            return
        deadline = time.monotonic() + seconds
        while self.shipper.pending_rows and self.shipper.failure is None:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.01)
        if self.shipper.pending_rows:
            logger.warning("%d predictions stay in the spool until the next start", self.shipper.pending_rows)


EXPLANATIONS: Mapping[FailureKind, str] = {
    "transient": "it cannot be reached or cannot answer",
    "configuration": "its schema, grants or triggers are not as this release needs them",
    "partition": "a partition is missing and cannot be made",
    "poison": "it refuses a row",
}


@asynccontextmanager
async def open_log(
    pool: asyncpg.Pool, durability: Durability, directory: Path, max_bytes: int, on_death: OnTaskDeath
) -> AsyncIterator[PredictionLog]:
    """Open the log until exit: then what has been promised is shipped, as far as that takes no longer than a while."""
    inserter = Inserter(pool)
    async with AsyncExitStack() as stack:
        journal = None
        if durability != "database":
            fsync = durability == "fsync"
            journal = await stack.enter_async_context(open_journal(directory, max_bytes, fsync, on_death))
        log = PredictionLog(inserter, journal)
        if log.shipper is not None:
            await stack.enter_async_context(own_task(log.shipper.run(), "shipper", on_death))
        if log.committer is not None:
            await stack.enter_async_context(own_task(log.committer.run(), "committer", on_death))
        yield log
        await log.drain(DRAIN_SECONDS)
