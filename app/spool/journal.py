"""The writer of the spool: append the rows of batches in groups; a group's rows are promised when it is on the disk.

While one group is written, the next one forms. After any error the file is never written or synced again: the group is
refused, and a new segment begins.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from app import metrics
from app.errors import Reason, UnavailableError
from app.group_commit import Entry, GroupCommit, settle
from app.spool.disk import write_all
from app.spool.flush import Flusher, open_flusher
from app.spool.segment import HEADER_BYTES
from app.spool.spool import Spool
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 32 * 1024**2
"""A segment is closed at this size, in a small spool earlier, so that it can be removed when its rows are shipped."""

SEGMENT_SECONDS = 300.0
"""A segment with rows is closed at this age, so that shipped rows are removed with little traffic too."""

MAX_GROUP_BYTES = 32 * 1024**2
"""Most bytes of a group of several batches; a larger batch is a group of its own."""

MAX_PENDING_BYTES = 2 * MAX_GROUP_BYTES
"""Most bytes that are being written or wait for the disk; above it, requests are refused at once."""

MIN_FREE_BYTES = 64 * 1024**2
"""Free space to leave on the disk for other programs; below it, requests are refused."""

RESUME_SHARE = 0.9
"""A full spool takes rows again below this share of a limit, so that it does not change all the time."""

RETAIN_SECONDS = 300.0
"""How long shipped segments are kept, to be shipped again after a failover to a standby without the last commits."""

FLUSH_SECONDS = 10.0
"""A disk that takes longer to sync a group counts as failed, because clients have given up by then."""

LIMIT_CHECK_SECONDS = 1.0
"""Interval of checking the limits, and of trying a failed disk again."""

Frames = tuple[bytes, int]
"""Encoded frames, and their number of rows."""


class Journal:
    """Appends rows to the spool. `refusal` says why it takes none now; it is None while it takes rows."""

    def __init__(self, spool: Spool, max_bytes: int, flusher: Flusher | None) -> None:
        self.max_bytes = max_bytes
        self._spool = spool
        self._disk = spool.disk
        self._flusher = flusher
        self._groups = GroupCommit[Frames](MAX_PENDING_BYTES, MAX_GROUP_BYTES, "too many predictions wait for the disk")
        self._descriptor: int | None = None
        self._began_at = 0.0
        self._next_check = 0.0

    @property
    def refusal(self) -> Reason | None:
        """Why `append` refuses rows now; None while it takes them."""
        return self._groups.refusal

    async def append(self, frames: bytes, rows: int) -> None:
        """Return when `frames`, which have `rows` rows, are promised; raise UnavailableError when they are not."""
        await self._groups.add((frames, rows), len(frames))

    async def run(self) -> None:
        """Write one group after the other until cancelled, then refuse waiting requests."""
        await self._groups.run(self._commit, LIMIT_CHECK_SECONDS)

    async def check(self) -> None:
        """Begin a segment if none is open or the open one is old, remove shipped segments, and check the limits."""
        self._next_check = time.monotonic() + LIMIT_CHECK_SECONDS
        free = await self._measure_free()
        disk_refusal = await self._ensure_segment()
        await self._remove_shipped(free)
        before, refusal = self.refusal, disk_refusal or self._find_excess(free)
        if refusal is None:
            self._groups.accept()
            if before is not None:
                logger.info("the spool takes predictions again")
            return
        self._groups.refuse(refusal)
        self._groups.refuse_waiting(refusal)
        if before is None or before.code != refusal.code:
            logger.warning("the spool takes no predictions: %s", refusal.detail)

    def close(self) -> None:
        """Close the open segment. Call it after `run` has ended."""
        if self._descriptor is not None:
            self._close_quietly(self._descriptor)
            self._descriptor = None

    async def _commit(self, group: list[Entry[Frames]]) -> None:
        if group:
            await self._write_group(group)
        if time.monotonic() >= self._next_check or self._spool.is_rotation_wanted:
            await self.check()

    async def _write_group(self, group: list[Entry[Frames]]) -> None:
        frames, rows = zip(*[entry.item for entry in group], strict=True)
        try:
            await self._write(b"".join(frames), sum(rows))
        except OSError as error:
            metrics.SPOOL_FAILURES.inc()
            logger.error("the spool cannot write: %s", str(error) or "no answer")  # noqa: TRY400  # not a bug
            settle(group, UnavailableError("the prediction could not be written to disk"))
            await self._abandon_segment()
        else:
            settle(group, None)
            self._spool.grown.set()

    async def _write(self, data: bytes, rows: int) -> None:
        segment = self._spool.segments[-1]
        if segment.readable_end + len(data) > self._segment_bytes and segment.readable_end > HEADER_BYTES:
            await self._rotate()
            segment = self._spool.segments[-1]
        if self._descriptor is None:
            raise OSError("no segment is open")
        write_all(self._disk, self._descriptor, data)
        if self._flusher is not None:
            await self._flush(self._flusher, self._descriptor)
        segment.rows += rows
        segment.readable_end += len(data)
        segment.acknowledged = segment.readable_end

    async def _flush(self, flusher: Flusher, descriptor: int) -> None:
        flushed: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        flusher.flush(descriptor, lambda error: None if flushed.done() else flushed.set_result(error))
        async with asyncio.timeout(FLUSH_SECONDS):
            error = await flushed
        if error is not None:
            raise error

    @property
    def _segment_bytes(self) -> int:
        return min(SEGMENT_BYTES, self.max_bytes // 4)

    async def _rotate(self) -> None:
        """Begin the next segment and close the old one; when that fails, the old one stays open for writing."""
        old = self._descriptor
        self._descriptor = await self._spool.begin_segment()
        self._began_at = time.monotonic()
        self._next_check = 0.0  # the spool has grown by a segment since the limits were checked
        if old is not None:
            await self._spool.call(self._close_quietly, old)

    async def _abandon_segment(self) -> None:
        """Cut the failed file to its promised length, close it for ever, and begin another segment."""
        segment, descriptor = self._spool.segments[-1], self._descriptor
        self._groups.refuse(Reason(code="spool_disk", detail="the spool's disk fails"))
        self._descriptor, segment.is_open = None, False
        if descriptor is not None:
            with suppress(OSError):
                await self._spool.call(self._disk.truncate, descriptor, segment.readable_end)
            await self._spool.call(self._close_quietly, descriptor)
        await self.check()

    def _close_quietly(self, descriptor: int) -> None:
        try:
            self._disk.close(descriptor)
        except OSError as error:  # no row is lost: promised rows are synced already, or need not be
            logger.warning("closing a segment failed: %s", error)

    async def _ensure_segment(self) -> Reason | None:
        """Begin a new segment unless one is open that is empty or still young; return why there is none."""
        is_open = self._descriptor is not None
        if is_open and self._spool.segments[-1].readable_end == HEADER_BYTES:
            return None
        is_young = time.monotonic() - self._began_at < SEGMENT_SECONDS and not self._spool.is_rotation_wanted
        if is_open and self.refusal is None and is_young:
            return None
        try:
            await self._rotate()
        except OSError as error:
            if not is_open:
                return Reason(code="spool_disk", detail=f"the spool's disk fails: {error.strerror or error}")
            logger.warning("the spool cannot begin a new segment yet: %s", error)
        return None

    def _find_excess(self, free: int | None) -> Reason | None:
        used = self._spool.used_bytes
        share = RESUME_SHARE if self.refusal is not None and self.refusal.code == "spool_full" else 1.0
        if used >= self.max_bytes * share:
            return Reason(code="spool_full", detail=f"the spool is full: {used} of {self.max_bytes} bytes")
        if free is not None and free < MIN_FREE_BYTES / share:
            return Reason(code="spool_full", detail=f"the spool's disk is full: {free} bytes are free")
        return None

    async def _measure_free(self) -> int | None:
        try:
            return await self._spool.call(self._disk.measure_free, self._spool.directory)
        except OSError as error:
            logger.warning("the free space of the spool's disk cannot be read: %s", error)
            return None

    async def _remove_shipped(self, free: int | None) -> None:
        """Remove shipped segments that are older than RETAIN_SECONDS, or more of them when space is needed."""
        is_short = self._descriptor is None or (free is not None and free < 2 * MIN_FREE_BYTES)
        for segment in list(self._spool.segments):
            shipped_at = segment.progress.shipped_at
            is_needed = is_short or self._spool.used_bytes > self.max_bytes * RESUME_SHARE * RESUME_SHARE
            if shipped_at is None or not (is_needed or time.monotonic() - shipped_at > RETAIN_SECONDS):
                continue
            try:
                await self._spool.remove(segment)
            except OSError as error:
                logger.warning("%s is shipped, but cannot be removed: %s", segment.path, error)


@asynccontextmanager
async def open_journal(spool: Spool, max_bytes: int, fsync: bool, on_death: OnTaskDeath) -> AsyncIterator[Journal]:
    """Open the writer of a spool until exit; this process must have opened the spool. It begins a new segment.

    A disk that cannot be written does not prevent the start: `refusal` says why no rows are taken.
    """
    assert spool.lock is not None, "the spool was only read, not opened"
    flusher = await open_flusher(spool.lock) if fsync else None
    try:
        journal = Journal(spool, max_bytes, flusher)
        await journal.check()
        try:
            async with own_task(journal.run(), "spool", on_death):
                yield journal
        finally:
            journal.close()
    finally:
        if flusher is not None:
            flusher.close()
