"""The log at the levels `fsync` and `os`: a request gets its 200 when its rows are in the spool on local disk."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from app import metrics
from app.errors import Reason, UnavailableError
from app.prediction_log.eraser import Eraser
from app.prediction_log.inserter import Inserter
from app.prediction_log.record import Rows
from app.prediction_log.shipper import Shipper
from app.spool.journal import Journal, open_journal
from app.spool.segment import encode_frame
from app.spool.spool import Spool, open_spool
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5.0
"""How long the shutdown waits until the spool is shipped; the next start ships the rest."""

DRAIN_POLL_SECONDS = 0.01
"""Pause between two checks of how many rows are not shipped yet."""


class SpooledLog:
    """Writes rows to the spool; the shipper stores them in PostgreSQL."""

    def __init__(self, spool: Spool, journal: Journal, shipper: Shipper) -> None:
        self._spool = spool
        self._journal = journal
        self._shipper = shipper

    async def store(self, rows: Sequence[Rows]) -> None:
        """Return when all rows are safe in the spool; raise UnavailableError when they are not."""
        count = sum([part.count for part in rows])
        frames = b"".join([encode_frame(part.payload, part.count) for part in rows])
        try:
            await self._journal.append(frames, count)
        except UnavailableError:
            metrics.LOG_REFUSED.inc(count)
            raise
        metrics.LOG_ANSWERED.inc(count)

    def find_refusal(self) -> Reason | None:
        """Return why `store` refuses rows now, None while it takes them."""
        return self._journal.refusal

    def find_trouble(self) -> Reason | None:
        """Return why rows do not reach PostgreSQL now, None while they do."""
        return self._shipper.trouble

    def export(self) -> None:
        """Update the gauges."""
        metrics.LOG_PENDING.set(self._spool.pending_rows)
        metrics.LOG_LAG.set(self._shipper.lag_seconds)
        metrics.SPOOL_BYTES.set(self._spool.used_bytes)
        metrics.SPOOL_MAX_BYTES.value = self._journal.max_bytes

    async def drain(self, seconds: float) -> None:
        """Wait until all rows are in PostgreSQL, at most `seconds`; stop when PostgreSQL does not store rows."""
        deadline = time.monotonic() + seconds
        while self._spool.pending_rows and self._shipper.trouble is None:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        if self._spool.pending_rows:
            logger.warning("%d predictions stay in the spool until the next start", self._spool.pending_rows)


@asynccontextmanager
async def open_spooled_log(
    pool: asyncpg.Pool, directory: Path, max_bytes: int, on_death: OnTaskDeath, *, fsync: bool
) -> AsyncIterator[SpooledLog]:
    """Open the spool, write to it and ship it until exit; rows of earlier runs are shipped first.

    At the end, wait up to DRAIN_SECONDS until everything is shipped.
    """
    async with open_spool(directory) as spool, open_journal(spool, max_bytes, fsync, on_death) as journal:
        shipper = Shipper(spool, Inserter(pool), Eraser(spool, pool))
        async with own_task(shipper.run(), "shipper", on_death):
            log = SpooledLog(spool, journal, shipper)
            yield log
            await log.drain(DRAIN_SECONDS)
