"""Ship the spool to PostgreSQL, for ever: store rows in order, or put them aside in dead/, and never drop one.

Rows are always read from the files, which are normally still in the page cache. So normal operation, an outage and a
restart use the same code, and memory holds one batch, however many rows wait.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence

import msgspec

from app import metrics
from app.errors import Reason, keep_since
from app.prediction_log.eraser import Eraser
from app.prediction_log.failures import explain_failure
from app.prediction_log.inserter import Inserter, InsertError, wait_to_retry
from app.prediction_log.record import RowDate
from app.spool.reader import Chunk, SpoolReader
from app.spool.segment import Frame
from app.spool.spool import Spool

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.02
"""Pause between batches, in which the next batch grows: a row is stored about this long after its answer."""

BACKLOG_ROWS = 500
"""After a batch of at least this size there is no pause."""

IDLE_SECONDS = 2.0
"""Interval at which an idle shipper tries an insert without rows, so that /health is right without traffic."""

SHIP_RETRY_BASE_SECONDS, SHIP_RETRY_CAP_SECONDS = 0.1, 4.0
"""The pause between attempts: random, from 0 to a limit that doubles from the first value to the second."""

WATCH_SECONDS = 2.0
"""Interval at which the shipper checks whether a standby has taken over, which may lack rows."""


class Shipper:
    """Ships a spool. `trouble` and `error` say why the last attempt failed; they are None after a successful one."""

    def __init__(self, spool: Spool, inserter: Inserter, eraser: Eraser) -> None:
        self._spool = spool
        self._inserter = inserter
        self._eraser = eraser
        self._reader = SpoolReader(spool)
        self._lagging_since: float | None = None
        self._cluster: str | None = None
        self._next_watch = 0.0
        self.trouble: Reason | None = None
        self.error: InsertError | None = None

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest row that is being stored; 0 when none is."""
        return 0.0 if self._lagging_since is None else time.monotonic() - self._lagging_since

    async def run(self) -> None:
        """Ship until cancelled, beginning with the rows of earlier runs."""
        recovered_rows = await self._spool.call(self._spool.count_older_rows)
        if recovered_rows:
            logger.info("the spool has %d rows of earlier runs, which are shipped again", recovered_rows)
        while True:
            rows = 0
            try:
                rows = await self._ship_next()
            except Exception as error:
                metrics.LOG_FAILURES.labels("transient").inc()
                logger.exception("shipping failed because of a bug; the rows stay on disk and are tried again")
                self._note(InsertError("transient", f"an error in this server: {type(error).__name__}"))
                await asyncio.sleep(IDLE_SECONDS)
            if rows < BACKLOG_ROWS:
                await asyncio.sleep(LINGER_SECONDS)

    async def _ship_next(self) -> int:
        """Ship one chunk and return its number of rows; without a chunk, wait a while and return 0."""
        await self._watch_cluster()
        await self._eraser.work()
        self._spool.grown.clear()
        chunk = await self._spool.call(self._reader.read)
        if chunk is None:
            await self._idle()
        else:
            await self._ship(chunk)
        self._reader.mark_shipped()
        return 0 if chunk is None else chunk.rows

    async def _ship(self, chunk: Chunk) -> None:
        """Store a chunk, however long that takes, and advance the reader."""
        if chunk.frames:
            # The wall clock may be set while the rows wait: it gives their age only now.
            age = max(0.0, time.time() - _read_time(chunk.frames[0].payload))
            self._lagging_since = time.monotonic() - age
            await self._store(chunk.frames)
            self._lagging_since = None
        self._reader.advance(chunk)

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
                await wait_to_retry(attempt, SHIP_RETRY_BASE_SECONDS, SHIP_RETRY_CAP_SECONDS)
            else:
                metrics.LOG_REPEATED.inc(sum(frame.rows for frame in frames) - stored)
                self._note(None)
                return

    async def _isolate(self, frames: Sequence[Frame], error: InsertError) -> None:
        """Find the refused rows by halving, and keep each in dead/ for a person to check."""
        if len(frames) == 1:
            frames = _split_frame(frames[0])
        if len(frames) == 1:
            await self._keep_dead(frames[0], error)
            return
        middle = len(frames) // 2
        await self._store(frames[:middle])
        await self._store(frames[middle:])

    async def _keep_dead(self, frame: Frame, error: InsertError) -> None:
        name = _name_dead(frame.payload)
        is_new = not await self._spool.call((self._spool.directory / "dead" / name).exists)
        attempt = 0
        while True:
            try:
                await self._spool.call(self._spool.put_aside, "dead", name, frame.payload)
            except OSError as refusal:
                attempt += 1
                logger.warning("a row that PostgreSQL refuses cannot be written to dead/%s: %s", name, refusal)
                await wait_to_retry(attempt, SHIP_RETRY_BASE_SECONDS, SHIP_RETRY_CAP_SECONDS)
            else:
                break
        if is_new:
            metrics.LOG_DEAD.inc(frame.rows)
        logger.error("PostgreSQL refuses a row, kept in dead/%s: %s", name, error)

    async def _idle(self) -> None:
        """Wait for rows; when none come, check whether PostgreSQL is available."""
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await self._spool.grown.wait()
        except TimeoutError:
            try:
                await self._inserter.insert([])
            except InsertError as error:
                self._note(error)
            else:
                self._note(None)

    async def _watch_cluster(self) -> None:
        """Ship all kept segments again when a standby has taken over, because it may lack the last commits."""
        if time.monotonic() < self._next_watch:
            return
        self._next_watch = time.monotonic() + WATCH_SECONDS
        try:
            cluster = await self._inserter.watch_cluster()
        except InsertError as error:
            logger.debug("the timeline of PostgreSQL cannot be read: %s", error)
            return
        if cluster is None:
            return
        if self._cluster not in (None, cluster):
            logger.warning("PostgreSQL is now %s, it was %s: shipping all kept rows again", cluster, self._cluster)
            self._reader.rewind()
        self._cluster = cluster

    def _note(self, error: InsertError | None) -> None:
        before, self.error = self.error, error
        if error is not None:
            self.trouble = keep_since(explain_failure(error.kind), self.trouble)
            if before is None or before.reason != error.reason:
                logger.warning("PostgreSQL does not store predictions, they wait on disk (%s): %s", error.kind, error)
        elif before is not None:
            self.trouble = None
            logger.info("PostgreSQL stores predictions again")


def _split_frame(frame: Frame) -> list[Frame]:
    """Return a frame for each row of a frame; return the frame itself when its payload cannot be decoded."""
    try:
        rows = msgspec.json.decode(b"[" + frame.payload + b"]", type=list[msgspec.Raw])
    except msgspec.MsgspecError:
        return [frame]
    return [Frame(bytes(row), 1, frame.start, frame.end) for row in rows]


def _name_dead(payload: bytes) -> str:
    """Return the file name for a refused row: the id of its prediction, or a hash when the id cannot be read."""
    try:
        return f"{msgspec.json.decode(payload, type=RowDate).prediction_id}.json"
    except msgspec.MsgspecError:
        return f"{hashlib.sha256(payload).hexdigest()[:32]}.json"


def _read_time(payload: bytes) -> float:
    """Return the time of a payload's rows, in seconds since 1970; all rows of a payload have the same time."""
    try:
        rows = msgspec.json.decode(b"[" + payload + b"]", type=list[RowDate])
    except msgspec.MsgspecError:
        rows = []
    return rows[0].created_at.timestamp() if rows else time.time()
