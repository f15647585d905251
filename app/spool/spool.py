"""The spool: a directory of segments, which one process writes, reads and removes.

The directory has LOCK, seg-<20 digits>.log, and dead/ and corrupt/ with files for a person to check. The journal writes
segments, the reader reads them; both get the spool.
"""

import asyncio
import fcntl
import logging
import os
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar
from uuid import uuid4

from app.errors import StartupError
from app.spool.disk import DISK, Disk, create_file, make_directories, read_bytes
from app.spool.segment import (
    FRAME,
    FRAME_MAGIC,
    HEADER_BYTES,
    Segment,
    SegmentHeader,
    decode_header,
    encode_header,
)
from app.tasks import call_in

logger = logging.getLogger(__name__)

SEGMENT_NAME = re.compile(r"seg-\d{20}\.log")

AsideFolder = Literal["dead", "corrupt"]
"""dead/ has rows that PostgreSQL refuses, corrupt/ has damaged bytes of segments."""


SPOOL_THREADS = 2
"""One for the journal and one for the shipper: each makes one call at a time."""

P = ParamSpec("P")
T = TypeVar("T")


class SpoolInUseError(StartupError):
    """Another process uses the spool."""


@dataclass(slots=True)
class Spool:
    """The segments of a directory, oldest first. `lock` is the open LOCK of a spool that this process may change."""

    directory: Path
    segments: "deque[Segment]"
    uuid: bytes
    disk: Disk = DISK
    lock: int | None = None
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is more to read."""
    is_rotation_wanted: bool = False
    """True makes the writer begin a segment soon, so that the open one can be rewritten."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a segment was begun."""
    _last_sequence: int = -1
    _threads: Executor = field(default_factory=lambda: ThreadPoolExecutor(SPOOL_THREADS, "spool"))

    async def call(self, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call a blocking function in a thread of the spool's own: no other work can hold it up."""
        return await call_in(self._threads, function, *arguments, **named)

    def end_threads(self) -> None:
        """End the threads. No call may be under way."""
        self._threads.shutdown(wait=False)

    @property
    def used_bytes(self) -> int:
        """The bytes of all segments."""
        return sum(segment.readable_end for segment in list(self.segments))

    @property
    def pending_rows(self) -> int:
        """The rows on the disk that are not shipped yet, or are to be shipped again."""
        return sum(segment.pending_rows for segment in list(self.segments))

    async def begin_segment(self) -> int:
        """Begin a segment and return its descriptor; when it raises OSError, the segment before stays open."""
        before = self.segments[-1] if self.segments else None
        sequence = max(self._last_sequence, before.sequence if before else -1) + 1
        path = self.directory / name_segment(sequence)
        header = encode_header(SegmentHeader(self.uuid, sequence, before.acknowledged if before else None))
        descriptor = await self.call(create_file, self.disk, path, header)
        if before is not None:
            before.is_open = False
        self.segments.append(Segment(sequence, path, HEADER_BYTES, HEADER_BYTES, is_open=True))
        self._last_sequence = sequence
        self.begun.set()
        return descriptor

    async def remove(self, segment: Segment) -> None:
        """Remove a segment that is completely stored or put aside, later if it is held; after OSError it stays."""
        if segment.is_held:
            return
        place = self.segments.index(segment)
        del self.segments[place]  # first, so that nothing reads it while it is removed
        try:
            await self.call(self.disk.unlink, segment.path)
        except FileNotFoundError:
            pass
        except OSError:
            self.segments.insert(place, segment)
            raise

    def count_older_rows(self) -> int:
        """Count the rows of earlier runs by the heads of their frames, without checking them. Blocks."""
        older = [segment for segment in list(self.segments) if not segment.is_open]
        for segment in older:
            segment.rows = self._count_rows(segment)
        return sum(segment.rows for segment in older)

    def put_aside(self, folder: AsideFolder, name: str, data: bytes) -> None:
        """Write bytes to a new file for a person to check, and sync it to the disk. Blocks; raises OSError."""
        make_directories(self.disk, self.directory / folder)
        self.disk.close(create_file(self.disk, self.directory / folder / name, data))

    def count_aside(self, folder: AsideFolder) -> int:
        """Count the files that were put aside."""
        return len(self.list_aside(folder))

    def list_aside(self, folder: AsideFolder) -> list[Path]:
        """List the files that were put aside."""
        try:
            return [self.directory / folder / name for name in self.disk.list_names(self.directory / folder)]
        except FileNotFoundError:
            return []

    def _count_rows(self, segment: Segment) -> int:
        rows, at = 0, HEADER_BYTES
        try:
            descriptor = self.disk.open(segment.path)
            try:
                data = read_bytes(self.disk, descriptor, segment.readable_end, 0)
            finally:
                self.disk.close(descriptor)
        except OSError:
            return 0  # not known; the reader reports that the file cannot be read
        while at + FRAME.size <= len(data):
            magic, length, count, _ = FRAME.unpack_from(data, at)
            if magic != FRAME_MAGIC or at + FRAME.size + length > len(data):
                break
            rows += count
            at += FRAME.size + length
        return rows


@asynccontextmanager
async def open_spool(directory: Path) -> AsyncIterator[Spool]:
    """Open the spool for this process alone until exit; make the directory if it does not exist.

    A disk that cannot be written does not prevent this: its segments can still be read. Raises StartupError.
    """
    try:
        lock = _lock_directory(directory)
    except OSError as error:
        raise StartupError(f"the spool {directory} cannot be opened: {error.strerror}") from error
    try:
        try:
            spool = await asyncio.to_thread(read_spool, directory)
        except OSError as error:
            raise StartupError(f"the spool {directory} cannot be read: {error.strerror}") from error
        spool.lock = lock
        try:
            yield spool
        finally:
            spool.end_threads()
    finally:
        os.close(lock)


def _lock_directory(directory: Path) -> int:
    """Lock the directory; open LOCK only for reading, because the disk may allow no writing."""
    make_directories(DISK, directory)
    descriptor = os.open(directory / "LOCK", os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SpoolInUseError(
            f"the spool {directory} is in use by another process: give each replica a DATA_DIR of its own"
        ) from None
    return descriptor


def is_in_use(directory: Path) -> bool:
    """Return whether a process uses the spool, by trying to lock it for a moment."""
    try:
        descriptor = os.open(directory / "LOCK", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_spool(directory: Path, disk: Disk = DISK) -> Spool:
    """Return the spool as it is now, for reading; an empty one gets a new uuid. Blocks; raises OSError.

    Raises FileNotFoundError when the process that uses the spool removes a segment meanwhile.
    """
    sequences = sorted(int(name[4:24]) for name in disk.list_names(directory) if SEGMENT_NAME.fullmatch(name))
    paths = [directory / name_segment(sequence) for sequence in sequences]
    headers = [_read_header(disk, path) for path in paths]
    segments: deque[Segment] = deque()
    for index, (sequence, path) in enumerate(zip(sequences, paths, strict=True)):
        after = headers[index + 1] if index + 1 < len(headers) else None
        is_next = after is not None and after.sequence == sequence + 1
        acknowledged = after.acknowledged_before if after is not None and is_next else None
        segments.append(Segment(sequence, path, max(disk.measure(path), acknowledged or 0), acknowledged))
    uuids = [header.spool for header in headers if header is not None]
    return Spool(directory, segments, uuids[-1] if uuids else uuid4().bytes, disk)


def name_segment(sequence: int) -> str:
    """Return the file name of a segment."""
    return f"seg-{sequence:020d}.log"


def _read_header(disk: Disk, path: Path) -> SegmentHeader | None:
    """Return the header, None when it is damaged or cannot be read: no row is lost by that."""
    try:
        descriptor = disk.open(path)
        try:
            return decode_header(disk.read(descriptor, HEADER_BYTES, 0))
        finally:
            disk.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        logger.warning("the header of %s cannot be read: %s", path, error)
        return None
