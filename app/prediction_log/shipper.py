"""Ship the spool to PostgreSQL, for ever: what is on the disk is stored in order, or put aside in dead/, never dropped.

Rows are always read from the files, which the page cache still holds when all is well: so health, an outage and a
restart are one path, and memory is one batch whatever waits.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence

import msgspec

from app import metrics
from app.prediction_log.inserter import Inserter, InsertError, LogFailure
from app.prediction_log.journal import Journal, Segment
from app.prediction_log.reader import Batch, SpoolReader, write_aside
from app.prediction_log.record import RowDate

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.02
"""Pause between batches, in which the next one grows: a row is in the table about this much after its answer."""

IDLE_SECONDS = 2.0
"""How often an idle shipper tries an insert of no rows, so that /health tells the truth without traffic."""

RETRY_BASE_SECONDS, RETRY_CAP_SECONDS = 0.1, 30.0
"""Bounds of the pause between two attempts, drawn with full jitter."""

WATCH_SECONDS = 10.0
"""How often PostgreSQL is asked whether a standby has taken over."""


class Shipper:
    """Stores what the journal has promised. `failure` is None when the last attempt held."""

    def __init__(self, journal: Journal, inserter: Inserter) -> None:
        self._journal = journal
        self._inserter = inserter
        self._reader = SpoolReader(journal.segments, journal.directory)
        self._oldest: float | None = None
        self._cluster: str | None = None
        self._next_watch = 0.0
        self.failure: LogFailure | None = None
        self._recovered_rows = 0
        self._shipped_rows = 0

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest row that waits to be stored; 0 when none does."""
        return 0.0 if self._oldest is None else max(0.0, time.time() - self._oldest)

    @property
    def pending_rows(self) -> int:
        """Rows on the disk that are not stored yet."""
        return max(0, self._recovered_rows + self._journal.appended_rows - self._shipped_rows)

    async def run(self) -> None:
        """Ship until cancelled, first what an earlier run has left."""
        self._recovered_rows = await asyncio.to_thread(self._reader.count_recovered_rows)
        if self._recovered_rows:
            logger.info("the spool holds %d rows of earlier runs, to be offered again", self._recovered_rows)
        while True:
            await self._watch_cluster()
            self._journal.grown.clear()
            batch = await asyncio.to_thread(self._reader.read)
            if batch is None:
                await self._idle()
            else:
                await self._ship(batch)
            await asyncio.sleep(LINGER_SECONDS)

    async def _ship(self, batch: Batch) -> None:
        """Store a batch, however long it takes, and move on."""
        payloads = [frame.payload for frame in batch.frames]
        if payloads:
            self._oldest = read_instant(payloads[0])
            await self._store(payloads)
            self._oldest = None
        self._reader.advance(batch)
        self._shipped_rows += batch.rows
        self._mark_shipped(batch.segment)

    async def _store(self, payloads: Sequence[bytes]) -> None:
        attempt = 0
        while True:
            try:
                await self._inserter.insert(payloads)
            except InsertError as error:
                if error.kind == "poison":
                    await self._isolate(payloads, error)
                    return
                attempt += 1
                self._note(error)
                if attempt > 1:  # after a restart of the server only the first use of a pooled connection fails
                    longest = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2.0 ** min(attempt, 20))
                    await asyncio.sleep(random.uniform(0, longest))  # noqa: S311
            else:
                self._note(None)
                return

    async def _isolate(self, payloads: Sequence[bytes], error: InsertError) -> None:
        """Find the rows that PostgreSQL refuses by halves, and keep each in dead/ for a person to look at."""
        if len(payloads) == 1:
            payloads = [bytes(row) for row in msgspec.json.decode(b"[" + payloads[0] + b"]", type=list[msgspec.Raw])]
        if len(payloads) == 1:
            name = f"{msgspec.json.decode(payloads[0], type=RowDate).prediction_id}.json"
            await asyncio.to_thread(write_aside, self._journal.directory / "dead", name, payloads[0])
            metrics.LOG_DEAD.inc()
            logger.error("PostgreSQL refuses a row, kept in dead/%s: %s", name, error)
            return
        middle = len(payloads) // 2
        await self._store(payloads[:middle])
        await self._store(payloads[middle:])

    async def _idle(self) -> None:
        """Wait for rows, and meanwhile look whether PostgreSQL is there."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._journal.grown.wait()
        except TimeoutError:
            try:
                await self._inserter.insert([])
            except InsertError as error:
                self._note(error)
            else:
                self._note(None)

    def _mark_shipped(self, segment: Segment) -> None:
        if self._reader.is_finished(segment):
            segment.shipped_at = time.monotonic()

    async def _watch_cluster(self) -> None:
        """Offer all that is kept again when a standby has taken over: it may lack the last commits."""
        if time.monotonic() < self._next_watch:
            return
        self._next_watch = time.monotonic() + WATCH_SECONDS
        try:
            cluster = await self._inserter.watch_cluster()
        except InsertError as error:
            logger.debug("cannot ask PostgreSQL for its history: %s", error)
            return
        if self._cluster not in (None, cluster):
            logger.warning("PostgreSQL is now %s, it was %s: offering all kept rows again", cluster, self._cluster)
            for segment in self._journal.segments:
                segment.shipped_at = None
            self._reader.rewind()
            self._shipped_rows = 0
        self._cluster = cluster

    def _note(self, error: InsertError | None) -> None:
        if error is None:
            if self.failure is not None:
                logger.info("PostgreSQL takes predictions again")
            self.failure = None
        elif self.failure is None or self.failure.reason != error.reason:
            logger.warning("PostgreSQL takes no predictions, they wait on disk (%s): %s", error.kind, error)
            since = self.failure.since if self.failure else time.time()
            self.failure = LogFailure(error.kind, error.reason, since)


def read_instant(payload: bytes) -> float:
    """Return when the rows of a payload were made, in seconds since 1970: one clock reading dates them all."""
    rows = msgspec.json.decode(b"[" + payload + b"]", type=list[RowDate])
    return rows[0].created_at.timestamp()
