"""Ship the spool to PostgreSQL, for ever: what is on the disk is stored in order, or put aside in dead/, never dropped.

Rows are always read from the files, which the page cache still holds when all is well: so health, an outage and a
restart are one path, and memory is one batch whatever waits.
"""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Sequence

import msgspec

from app import metrics
from app.prediction_log.inserter import Inserter, InsertError, LogFailure
from app.prediction_log.record import RowDate
from app.spool.disk import write_aside
from app.spool.journal import Journal
from app.spool.reader import Batch, SpoolReader
from app.spool.segment import Frame

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.02
"""Pause between batches, in which the next one grows: a row is in the table about this much after its answer."""

BACKLOG_ROWS = 500
"""A batch of this size did not need to grow: after it the next one is read at once."""

IDLE_SECONDS = 2.0
"""How often an idle shipper tries an insert of no rows, so that /health tells the truth without traffic."""

RETRY_BASE_SECONDS, RETRY_CAP_SECONDS = 0.1, 4.0
"""Bounds of the pause between two attempts, drawn with full jitter."""

WATCH_SECONDS = 10.0
"""How often PostgreSQL is asked whether a standby has taken over."""


class Shipper:
    """Stores what the journal has promised. `failure` is None when the last attempt held."""

    def __init__(self, journal: Journal, inserter: Inserter) -> None:
        self._journal = journal
        self._inserter = inserter
        self._reader = SpoolReader(journal.segments, journal.directory, journal.disk)
        self._oldest: float | None = None
        self._cluster: str | None = None
        self._next_watch = 0.0
        self.failure: LogFailure | None = None

    @property
    def lag_seconds(self) -> float:
        """Age of the oldest row that waits to be stored; 0 when none does."""
        return 0.0 if self._oldest is None else max(0.0, time.time() - self._oldest)

    @property
    def pending_rows(self) -> int:
        """Rows on the disk that are not stored yet, or are to be offered again."""
        return sum(segment.pending_rows for segment in list(self._journal.segments))

    async def run(self) -> None:
        """Ship until cancelled, first what an earlier run has left."""
        recovered_rows = await asyncio.to_thread(self._reader.count_recovered_rows)
        if recovered_rows:
            logger.info("the spool holds %d rows of earlier runs, to be offered again", recovered_rows)
        while True:
            rows = 0
            try:
                rows = await self._ship_next()
            except Exception as error:
                metrics.LOG_FAILURES.labels("transient").inc()
                logger.exception("shipping failed; the rows stay on disk and are tried again")
                self._note(InsertError("transient", f"an error of this server, {type(error).__name__}"))
                await asyncio.sleep(IDLE_SECONDS)
            if rows < BACKLOG_ROWS:
                await asyncio.sleep(LINGER_SECONDS)

    async def _ship_next(self) -> int:
        """Ship one batch, or wait until there is one; return how many rows it had."""
        await self._watch_cluster()
        self._journal.grown.clear()
        batch = await asyncio.to_thread(self._reader.read)
        if batch is None:
            await self._idle()
        else:
            await self._ship(batch)
        self._mark_shipped()
        return 0 if batch is None else batch.rows

    async def _ship(self, batch: Batch) -> None:
        """Store a batch, however long it takes, and move on."""
        if batch.frames:
            self._oldest = read_instant(batch.frames[0].payload)
            await self._store(batch.frames)
            self._oldest = None
        self._reader.advance(batch)

    async def _store(self, frames: Sequence[Frame]) -> None:
        attempt = 0
        while True:
            try:
                stored = await self._inserter.insert([frame.payload for frame in frames])
            except InsertError as error:
                if error.kind == "poison":
                    await self._isolate(frames, error)
                    return
                attempt += 1
                self._note(error)
                if attempt > 1:  # after a restart of the server only the first use of a pooled connection fails
                    await pause(attempt)
            else:
                metrics.LOG_REPEATED.inc(sum(frame.rows for frame in frames) - stored)
                self._note(None)
                return

    async def _isolate(self, frames: Sequence[Frame], error: InsertError) -> None:
        """Find the rows that PostgreSQL refuses by halves, and keep each in dead/ for a person to look at."""
        if len(frames) == 1:
            frames = split_frame(frames[0])
        if len(frames) == 1:
            await self._keep_dead(frames[0], error)
            return
        middle = len(frames) // 2
        await self._store(frames[:middle])
        await self._store(frames[middle:])

    async def _keep_dead(self, frame: Frame, error: InsertError) -> None:
        path = self._journal.directory / "dead" / name_dead(frame.payload)
        is_new = not await asyncio.to_thread(path.exists)
        attempt = 0
        while True:
            try:
                await asyncio.to_thread(write_aside, self._journal.disk, path, frame.payload)
            except OSError as refusal:
                attempt += 1
                logger.warning("a row that PostgreSQL refuses cannot be kept in %s: %s", path, refusal)
                await pause(attempt)
            else:
                break
        if is_new:
            metrics.LOG_DEAD.inc(frame.rows)
        logger.error("PostgreSQL refuses a row, kept in dead/%s: %s", path.name, error)

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

    def _mark_shipped(self) -> None:
        """Release what is finished: also a segment that was closed after its last row had been shipped."""
        for segment in self._journal.segments:
            if segment.is_finished and segment.shipped_at is None and not segment.is_kept:
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
            self._reader.rewind()
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


async def pause(attempt: int) -> None:
    """Wait before the next attempt, with full jitter."""
    longest = min(RETRY_CAP_SECONDS, RETRY_BASE_SECONDS * 2.0 ** min(attempt, 20))
    await asyncio.sleep(random.uniform(0, longest))  # noqa: S311


def split_frame(frame: Frame) -> list[Frame]:
    """Return each row of a frame as a frame of its own; the frame itself when its payload cannot be taken apart."""
    try:
        rows = msgspec.json.decode(b"[" + frame.payload + b"]", type=list[msgspec.Raw])
    except msgspec.MsgspecError:
        return [frame]
    return [Frame(bytes(row), 1, frame.start, frame.end) for row in rows]


def name_dead(payload: bytes) -> str:
    """Return the name of a refused row's file: the id of its prediction, or a hash where none can be read."""
    try:
        return f"{msgspec.json.decode(payload, type=RowDate).prediction_id}.json"
    except msgspec.MsgspecError:
        return f"{hashlib.sha256(payload).hexdigest()[:32]}.json"


def read_instant(payload: bytes) -> float:
    """Return when the rows of a payload were made, in seconds since 1970: one clock reading dates them all."""
    try:
        rows = msgspec.json.decode(b"[" + payload + b"]", type=list[RowDate])
    except msgspec.MsgspecError:
        rows = []
    return rows[0].created_at.timestamp() if rows else time.time()
