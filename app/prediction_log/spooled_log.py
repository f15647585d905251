"""The log at the levels `fsync` and `os`: a 200 waits for the spool on local disk, which is shipped to PostgreSQL."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from app import metrics
from app.errors import Reason, UnavailableError
from app.prediction_log.inserter import Inserter
from app.prediction_log.record import Rows
from app.prediction_log.shipper import Shipper
from app.spool.journal import Journal, open_journal
from app.spool.segment import encode_frame
from app.spool.spool import Spool, open_spool
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long the end of the process waits for the spool to be shipped; what is left is shipped at the next start."""

DRAIN_POLL_SECONDS = 0.01
"""Between two looks at what is still to be shipped."""


class SpooledLog:
    """Writes rows to the spool; the shipper brings them from there to PostgreSQL."""

    def __init__(self, spool: Spool, journal: Journal, shipper: Shipper) -> None:
        self._spool = spool
        self._journal = journal
        self._shipper = shipper

    async def store(self, rows: Sequence[Rows]) -> None:
        """Return when all rows are promised to be stored; raise UnavailableError when they are not."""
        count = sum([part.count for part in rows])
        frames = b"".join([encode_frame(part.payload, part.count) for part in rows])
        try:
            await self._journal.append(frames, count)
        except UnavailableError:
            metrics.LOG_REFUSED.inc(count)
            raise
        metrics.LOG_ANSWERED.inc(count)

    def find_refusal(self) -> Reason | None:
        """Return why `store` refuses now; None while it can keep its promise."""
        return self._journal.refusal

    def find_trouble(self) -> Reason | None:
        """Return why rows do not reach PostgreSQL; None while they do."""
        return self._shipper.trouble

    def export(self) -> None:
        """Bring the gauges up to date."""
        metrics.LOG_PENDING.set(self._spool.pending_rows)
        metrics.LOG_LAG.set(self._shipper.lag_seconds)
        metrics.SPOOL_BYTES.set(self._spool.used_bytes)
        metrics.SPOOL_MAX_BYTES.value = self._journal.max_bytes

    async def drain(self, seconds: float) -> None:
        """Wait until everything is in PostgreSQL, at most `seconds`, and not for a PostgreSQL that takes nothing."""
        deadline = time.monotonic() + seconds
        while self._spool.pending_rows and self._shipper.trouble is None:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        if self._spool.pending_rows:
            logger.warning("%d predictions stay in the spool until the next start", self._spool.pending_rows)


@asynccontextmanager
async def open_spooled_log(
    inserter: Inserter, directory: Path, max_bytes: int, on_death: OnTaskDeath, *, fsync: bool
) -> AsyncIterator[SpooledLog]:
    """Open the spool, write it and ship it until exit; what an earlier run has left is shipped first.

    At the end what has been promised is shipped, as far as that takes no longer than a while.
    """
    async with open_spool(directory) as spool, open_journal(spool, max_bytes, fsync, on_death) as journal:
        shipper = Shipper(spool, inserter)
        async with own_task(shipper.run(), "shipper", on_death):
            log = SpooledLog(spool, journal, shipper)
            yield log
            await log.drain(DRAIN_SECONDS)
