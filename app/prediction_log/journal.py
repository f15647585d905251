"""The spool on local disk: requests' rows are appended in groups, and are promised when their group is on the disk.

A directory holds LOCK, seg-<20 digits>.log, dead/ and corrupt/. One group is in flight; what arrives meanwhile is the
next. After any error the file is never written or synced again: the group is refused, a new segment is begun.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from app import metrics
from app.errors import StartupError, UnavailableError
from app.prediction_log.flush import Flusher, open_flusher
from app.prediction_log.segment import HEADER_BYTES, SegmentHeader, decode_header, encode_header
from app.tasks import OnTaskDeath, own_task

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 32 * 1024**2
"""A segment is closed at this size: it is the unit in which shipped rows leave the disk."""

SEGMENT_SECONDS = 300.0
"""A segment with rows is closed at this age, so that shipped rows leave the disk under little traffic too."""

MAX_WAITING_BYTES = 32 * 1024**2
"""Bytes that may wait for the disk; beyond, requests are refused at once."""

MIN_FREE_BYTES = 64 * 1024**2
"""Free space that is left to others on the disk; below it requests are refused."""

RESUME_SHARE = 0.9
"""A full spool takes rows again below this share of its limit, so that it does not flutter."""

RETAIN_SECONDS = 300.0
"""How long shipped segments stay, to be offered again after a failover to a standby that lacks the last commits."""

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
class Segment:
    """A file of the spool. `readable_end` is how far it may be read: what was promised, or all of an older file.

    `acknowledged` is how much had been promised for certain, None where that is not known.
    """

    sequence: int
    path: Path
    readable_end: int
    acknowledged: int | None
    is_open: bool = False
    shipped_at: float | None = None


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
    failure: SpoolFailure | None = None
    appended_rows: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    _descriptor: int = -1
    _began_at: float = 0.0
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
        return sum(segment.readable_end for segment in self.segments)

    async def run(self) -> None:
        """Write group after group until cancelled; nobody is left waiting at the end."""
        next_check = 0.0
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_SECONDS):
                        await self._arrived.wait()
                if self._waiting:
                    await self._write_waiting()
                if time.monotonic() >= next_check:
                    await self._check()
                    next_check = time.monotonic() + PROBE_SECONDS
        finally:
            self.failure = SpoolFailure("stopping", "the server is stopping")
            self._refuse_waiting()

    async def _write_waiting(self) -> None:
        groups, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._arrived.clear()
        try:
            await self._write(b"".join([group.frames for group in groups]))
        except OSError as error:
            metrics.SPOOL_FAILURES.inc()
            logger.error("the spool cannot write: %s", error)  # noqa: TRY400  # the disk's fault has no traceback
            self._settle(groups, SpoolUnavailableError("the prediction could not be written to disk"))
            await self._abandon_segment()
        else:
            self.appended_rows += sum(group.rows for group in groups)
            self._settle(groups, None)
            self.grown.set()

    async def _write(self, data: bytes) -> None:
        segment = self.segments[-1]
        if segment.readable_end + len(data) > SEGMENT_BYTES and segment.readable_end > HEADER_BYTES:
            await self._rotate()
            segment = self.segments[-1]
        write_all(self._descriptor, data)
        if self.flusher is not None:
            await self._flush(self.flusher)
        segment.readable_end += len(data)

    async def _flush(self, flusher: Flusher) -> None:
        flushed: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        flusher.flush(self._descriptor, lambda error: None if flushed.done() else flushed.set_result(error))
        error = await flushed
        if error is not None:
            raise error

    async def _rotate(self) -> None:
        """Close the segment and begin the next; the old one stays open for writing when that fails."""
        old = self._descriptor
        await self.begin_segment()
        await asyncio.to_thread(os.close, old)

    async def begin_segment(self) -> None:
        """Begin a segment; its directory entry is on the disk before anything in it is promised."""
        before = self.segments[-1] if self.segments else None
        sequence = before.sequence + 1 if before else 0
        path = self.directory / name_segment(sequence)
        if before is not None and before.is_open:
            before.acknowledged = before.readable_end
        header = SegmentHeader(self.spool, sequence, before.acknowledged if before else None)
        self._descriptor = await asyncio.to_thread(_create_segment, path, encode_header(header))
        if before is not None:
            before.is_open = False
        self.segments.append(Segment(sequence, path, HEADER_BYTES, None, is_open=True))
        self._began_at = time.monotonic()

    async def _abandon_segment(self) -> None:
        """Cut the failed file back to what was promised and begin another; if that fails, wait for the disk."""
        segment, descriptor = self.segments[-1], self._descriptor
        with suppress(OSError):
            await asyncio.to_thread(os.ftruncate, descriptor, segment.readable_end)
        with suppress(OSError):
            await asyncio.to_thread(os.close, descriptor)
        segment.is_open, segment.acknowledged = False, segment.readable_end
        while True:
            try:
                await self.begin_segment()
            except OSError as error:
                self.failure = SpoolFailure("spool_disk", f"the spool's disk fails: {error.strerror}")
                self._refuse_waiting()
                await asyncio.sleep(PROBE_SECONDS)
            else:
                self.failure = None
                logger.info("the spool goes on in a new segment")
                return

    async def _check(self) -> None:
        """Remove what has been shipped, look at the limits, and close a segment that is old."""
        await self._remove_shipped()
        used = self.used_bytes
        limit = self.max_bytes * (RESUME_SHARE if self.failure else 1.0)
        free = (await asyncio.to_thread(shutil.disk_usage, self.directory)).free
        if used >= limit:
            self._say_full(f"the spool is full: {used} of {self.max_bytes} bytes")
        elif free < MIN_FREE_BYTES * (2.0 if self.failure else 1.0):
            self._say_full(f"the spool's disk is full: {free} bytes are free")
        elif self.failure is not None:
            logger.info("the spool takes predictions again")
            self.failure = None
        has_rows = self.segments[-1].readable_end > HEADER_BYTES
        if has_rows and time.monotonic() - self._began_at > SEGMENT_SECONDS:
            try:
                await self._rotate()
            except OSError as error:
                logger.warning("the spool cannot begin a new segment yet: %s", error)

    async def _remove_shipped(self) -> None:
        """Delete shipped segments that have been kept long enough, all of them when space is needed."""
        for segment in list(self.segments):
            is_needed = self.used_bytes > self.max_bytes * RESUME_SHARE * RESUME_SHARE
            if segment.shipped_at is None or not (is_needed or time.monotonic() - segment.shipped_at > RETAIN_SECONDS):
                continue
            self.segments.remove(segment)
            await asyncio.to_thread(segment.path.unlink, missing_ok=True)

    def _say_full(self, reason: str) -> None:
        if self.failure is None:
            logger.warning("%s", reason)
        self.failure = SpoolFailure("spool_full", reason)
        self._refuse_waiting()

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
    """Open the spool of this process until exit; older segments stand before the new one, to be shipped first."""
    try:
        lock = _lock_directory(directory)
    except OSError as error:
        raise StartupError(f"the spool {directory} cannot be opened: {error.strerror}") from error
    flusher = await open_flusher(directory) if fsync else None
    try:
        segments, spool = await asyncio.to_thread(find_segments, directory)
        journal = Journal(directory, max_bytes, flusher, segments, spool)
        try:
            await journal.begin_segment()
        except OSError as error:
            raise StartupError(f"the spool {directory} cannot be written: {error.strerror}") from error
        async with own_task(journal.run(), "spool", on_death):
            yield journal
    finally:
        if flusher is not None:
            flusher.close()
        os.close(lock)


def find_segments(directory: Path) -> tuple["deque[Segment]", bytes]:
    """Return the segments that are there, oldest first, and the spool's uuid, a new one for a new spool."""
    paths = sorted(directory.glob("seg-*.log"))
    headers = []
    for path in paths:
        with path.open("rb") as file:
            headers.append(decode_header(file.read(HEADER_BYTES)))
    segments: deque[Segment] = deque()
    for index, path in enumerate(paths):
        sequence = int(path.stem.removeprefix("seg-"))
        after = headers[index + 1] if index + 1 < len(paths) else None
        known = after is not None and after.sequence == sequence + 1
        acknowledged = after.acknowledged_before if after is not None and known else None
        segments.append(Segment(sequence, path, path.stat().st_size, acknowledged))
    spools = [header.spool for header in headers if header is not None]
    return segments, spools[-1] if spools else uuid4().bytes


def name_segment(sequence: int) -> str:
    """Return the file name of a segment."""
    return f"seg-{sequence:020d}.log"


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything: a nearly full disk takes a part of it first."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _create_segment(path: Path, header: bytes) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        write_all(descriptor, header)
        os.fsync(descriptor)
        sync_directory(path.parent)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock_directory(directory: Path) -> int:
    """Make the directory, and be the only process that uses it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory / "LOCK", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StartupError(
            f"the spool {directory} is in use by another process: give each replica a DATA_DIR of its own"
        ) from None
    return descriptor
