"""The spool on local disk: requests' rows are appended in groups, and are promised when their group is on the disk.

A directory holds LOCK, seg-<20 digits>.log, dead/ and corrupt/. One group is in flight; what arrives meanwhile is the
next. After any error the file is never written or synced again: the group is refused, a new segment is begun.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from app import metrics
from app.errors import StartupError, UnavailableError
from app.spool.disk import DISK, Disk, Flusher, create_file, make_directory, open_flusher, write_all
from app.spool.reader import find_segments, name_segment
from app.spool.segment import HEADER_BYTES, Segment, SegmentHeader, encode_header
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

SEGMENT_BYTES = 32 * 1024**2
"""A segment is closed at this size, in a small spool earlier: it is the unit in which shipped rows leave the disk."""

SEGMENT_SECONDS = 300.0
"""A segment with rows is closed at this age, so that shipped rows leave the disk under little traffic too."""

MAX_WAITING_BYTES = 32 * 1024**2
"""Bytes that may wait for the disk; beyond, requests are refused at once."""

MIN_FREE_BYTES = 64 * 1024**2
"""Free space that is left to others on the disk; below it requests are refused."""

RESUME_SHARE = 0.9
"""A full spool takes rows again below this share of a limit, so that it does not flutter."""

RETAIN_SECONDS = 300.0
"""How long shipped segments stay, to be offered again after a failover to a standby that lacks the last commits."""

FLUSH_SECONDS = 10.0
"""A disk that takes longer for a group counts as failed: clients have given up by then."""

PROBE_SECONDS = 1.0
"""How often limits are looked at, and how often a failed disk is tried again."""


@dataclass(frozen=True, slots=True)
class SpoolFailure:
    """Why nothing can be promised: a code for machines, words for the operator."""

    code: str
    reason: str


class SpoolUnavailableError(UnavailableError):
    """The spool cannot make the promise now: the disk fails, or is full."""


@dataclass(slots=True)
class _Group:
    frames: bytes
    rows: int
    promised: "asyncio.Future[None]"


@dataclass(slots=True)
class Journal:
    """Appends rows. `failure` says why it cannot now, None when it can. Full: SpoolUnavailableError at once."""

    directory: Path
    max_bytes: int
    flusher: Flusher | None
    segments: "deque[Segment]"
    spool: bytes
    disk: Disk = DISK
    failure: SpoolFailure | None = None
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    _descriptor: int | None = None
    _last_sequence: int = -1
    _began_at: float = 0.0
    _next_check: float = 0.0
    _waiting: list[_Group] = field(default_factory=list)
    _waiting_bytes: int = 0
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def append(self, frames: bytes, rows: int) -> None:
        """Return when `frames`, encoded frames of `rows` rows, are promised; raise SpoolUnavailableError if not."""
        if self.failure is not None:
            raise SpoolUnavailableError(self.failure.reason)
        if self._waiting and self._waiting_bytes + len(frames) > MAX_WAITING_BYTES:
            raise SpoolUnavailableError("too many predictions wait for the disk")
        group = _Group(frames, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        self._waiting_bytes += len(frames)
        self._arrived.set()
        await group.promised

    @property
    def used_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.readable_end for segment in list(self.segments))

    async def run(self) -> None:
        """Write group after group until cancelled; nobody is left waiting at the end."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._arrived.wait()
                if self._waiting:
                    await self._write_waiting()
                if time.monotonic() >= self._next_check:
                    await self.check()
        finally:
            self.failure = SpoolFailure("stopping", "the server is stopping")
            self._refuse_waiting()

    async def check(self) -> None:
        """Begin a segment if none is open or it is old, remove what has been shipped, and look at the limits."""
        self._next_check = time.monotonic() + PROBE_SECONDS
        free = await self._measure_free()
        disk_failure = await self._ensure_segment()
        await self._remove_shipped(free)
        failure = disk_failure or self._find_excess(free)
        if failure is None and self.failure is not None:
            logger.info("the spool takes predictions again")
        elif failure is not None and (self.failure is None or self.failure.code != failure.code):
            logger.warning("the spool takes no predictions: %s", failure.reason)
        self.failure = failure
        if failure is not None:
            self._refuse_waiting()

    def close(self) -> None:
        """Close the open segment; to be called when `run` has ended."""
        if self._descriptor is not None:
            self._close_quietly(self._descriptor)
            self._descriptor = None

    async def _write_waiting(self) -> None:
        groups, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._arrived.clear()
        refusal: SpoolUnavailableError | None = SpoolUnavailableError("the server is stopping")
        try:
            await self._write(b"".join([group.frames for group in groups]), sum(group.rows for group in groups))
            refusal = None
        except OSError as error:
            metrics.SPOOL_FAILURES.inc()
            logger.error("the spool cannot write: %s", str(error) or "no answer")  # noqa: TRY400  # no bug
            refusal = SpoolUnavailableError("the prediction could not be written to disk")
        finally:
            self._settle(groups, refusal)
        if refusal is None:
            self.grown.set()
        else:
            await self._abandon_segment()

    async def _write(self, data: bytes, rows: int) -> None:
        segment = self.segments[-1]
        if segment.readable_end + len(data) > self._segment_bytes and segment.readable_end > HEADER_BYTES:
            await self._rotate()
            segment = self.segments[-1]
        if self._descriptor is None:
            raise OSError("no segment is open")
        write_all(self.disk, self._descriptor, data)
        if self.flusher is not None:
            await self._flush(self.flusher, self._descriptor)
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
        """Begin the next segment and close the old one, which stays open for writing when that fails."""
        old = self._descriptor
        await self._begin_segment()
        if old is not None:
            await _call(self._close_quietly, old)

    async def _begin_segment(self) -> None:
        """Begin a segment; its directory entry is on the disk before anything in it is promised."""
        before = self.segments[-1] if self.segments else None
        sequence = max(self._last_sequence, before.sequence if before else -1) + 1
        path = self.directory / name_segment(sequence)
        header = encode_header(SegmentHeader(self.spool, sequence, before.acknowledged if before else None))
        self._descriptor = await _call(create_file, self.disk, path, header)
        if before is not None:
            before.is_open = False
        self.segments.append(Segment(sequence, path, HEADER_BYTES, HEADER_BYTES, is_open=True))
        self._last_sequence = sequence
        self._began_at = time.monotonic()
        self._next_check = 0.0  # the spool has grown by a segment since the limits were looked at

    async def _abandon_segment(self) -> None:
        """Cut the failed file back to what was promised, never touch it again, and go on in another."""
        segment, descriptor = self.segments[-1], self._descriptor
        self.failure = SpoolFailure("spool_disk", "the spool's disk fails")
        self._descriptor, segment.is_open = None, False
        if descriptor is not None:
            with suppress(OSError):
                await _call(self.disk.truncate, descriptor, segment.readable_end)
            await _call(self._close_quietly, descriptor)
        await self.check()

    def _close_quietly(self, descriptor: int) -> None:
        try:
            self.disk.close(descriptor)
        except OSError as error:  # nothing hangs on it: what was promised has been synced, or need not be
            logger.warning("closing a segment failed: %s", error)

    async def _ensure_segment(self) -> SpoolFailure | None:
        """Have an open segment that is neither old nor in the way of making room; say why there is none."""
        is_open = self._descriptor is not None
        if is_open and self.segments[-1].readable_end == HEADER_BYTES:
            return None
        if is_open and self.failure is None and time.monotonic() - self._began_at < SEGMENT_SECONDS:
            return None
        try:
            await self._rotate()
        except OSError as error:
            if not is_open:
                return SpoolFailure("spool_disk", f"the spool's disk fails: {error.strerror or error}")
            logger.warning("the spool cannot begin a new segment yet: %s", error)
        return None

    def _find_excess(self, free: int | None) -> SpoolFailure | None:
        used = self.used_bytes
        share = RESUME_SHARE if self.failure is not None and self.failure.code == "spool_full" else 1.0
        if used >= self.max_bytes * share:
            return SpoolFailure("spool_full", f"the spool is full: {used} of {self.max_bytes} bytes")
        if free is not None and free < MIN_FREE_BYTES / share:
            return SpoolFailure("spool_full", f"the spool's disk is full: {free} bytes are free")
        return None

    async def _measure_free(self) -> int | None:
        try:
            return await _call(self.disk.measure_free, self.directory)
        except OSError as error:
            logger.warning("cannot tell how much of the spool's disk is free: %s", error)
            return None

    async def _remove_shipped(self, free: int | None) -> None:
        """Delete shipped segments that have been kept long enough, all of them when space is needed."""
        is_short = self._descriptor is None or (free is not None and free < 2 * MIN_FREE_BYTES)
        for segment in list(self.segments):
            is_needed = is_short or self.used_bytes > self.max_bytes * RESUME_SHARE * RESUME_SHARE
            if segment.shipped_at is None or not (is_needed or time.monotonic() - segment.shipped_at > RETAIN_SECONDS):
                continue
            place = self.segments.index(segment)
            del self.segments[place]  # first, so that nobody reads it while it goes
            try:
                await _call(self.disk.unlink, segment.path)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.segments.insert(place, segment)
                logger.warning("cannot remove %s, which has been shipped: %s", segment.path, error)

    def _refuse_waiting(self) -> None:
        groups, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._arrived.clear()
        reason = self.failure.reason if self.failure else "the spool takes no predictions"
        self._settle(groups, SpoolUnavailableError(reason))

    def _settle(self, groups: Sequence[_Group], error: SpoolUnavailableError | None) -> None:
        for group in groups:
            if group.promised.done():
                continue  # its client has gone
            if error is None:
                group.promised.set_result(None)
            else:
                group.promised.set_exception(error)


@asynccontextmanager
async def open_journal(directory: Path, max_bytes: int, fsync: bool, on_death: OnTaskDeath) -> AsyncIterator[Journal]:
    """Open the spool of this process until exit; older segments stand before the new one, to be shipped first.

    A disk that takes nothing does not prevent the start: what it holds is shipped, and `failure` says why it refuses.
    """
    try:
        lock = _lock_directory(directory)
    except OSError as error:
        raise StartupError(f"the spool {directory} cannot be opened: {error.strerror}") from error
    flusher = None
    try:
        flusher = await open_flusher(lock) if fsync else None
        try:
            segments, spool = await asyncio.to_thread(find_segments, directory)
        except OSError as error:
            raise StartupError(f"the spool {directory} cannot be read: {error.strerror}") from error
        journal = Journal(directory, max_bytes, flusher, segments, spool)
        await journal.check()
        try:
            async with own_task(journal.run(), "spool", on_death):
                yield journal
        finally:
            journal.close()
    finally:
        if flusher is not None:
            flusher.close()
        os.close(lock)


def _lock_directory(directory: Path) -> int:
    """Make the directory, and be the only process that uses it; the lock is only read, as a disk may allow no more."""
    make_directory(DISK, directory)
    descriptor = os.open(directory / "LOCK", os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StartupError(
            f"the spool {directory} is in use by another process: give each replica a DATA_DIR of its own"
        ) from None
    return descriptor


async def _call(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call in a thread, to the end even when cancelled: nothing may go on in the directory once the lock is gone."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
