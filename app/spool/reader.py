"""Read the spool back: in order, only what was promised, and past damage without losing it from sight."""

import logging
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from app import metrics
from app.spool.disk import DISK, Disk, write_aside
from app.spool.segment import (
    FRAME,
    FRAME_MAGIC,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Damage,
    Frame,
    Segment,
    SegmentHeader,
    decode_header,
    find_cut_off,
    read_frames,
)

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024**2
"""Bytes read for one batch, 2,000 rows or so; a longer frame is read whole."""

PAGE_BYTES = 4096
"""What is given up at once where the disk cannot read."""

RETRY_SECONDS = 30.0
"""How long a segment that cannot be opened is passed over; the others go on meanwhile."""

SEGMENT_NAME = re.compile(r"seg-\d{20}\.log")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read found: frames of one segment, and where the next read of it begins."""

    segment: Segment
    frames: list[Frame]
    end: int

    @property
    def rows(self) -> int:
        """Rows of all frames."""
        return sum(frame.rows for frame in self.frames)


class SpoolReader:
    """Reads on from where each segment has got. Reads block on the disk: call them in a thread, one at a time."""

    def __init__(self, segments: "deque[Segment]", directory: Path, disk: Disk = DISK) -> None:
        self._segments = segments
        self._directory = directory
        self._disk = disk
        self._reported: set[tuple[int, int]] = set()

    def read(self) -> Batch | None:
        """Return the next batch, None when everything that was promised has been read. Does not move on."""
        now = time.monotonic()
        for segment in list(self._segments):
            if segment.shipped_at is not None or segment.read_end >= segment.readable_end or segment.retry_at > now:
                continue
            try:
                return self._read_segment(segment)
            except OSError as error:
                segment.retry_at = now + RETRY_SECONDS
                logger.error("%s cannot be read, it stays and is tried again: %s", segment.path, error)  # noqa: TRY400  # no bug
        return None

    def advance(self, batch: Batch) -> None:
        """Move on behind a batch that has been dealt with."""
        batch.segment.read_end = batch.end
        batch.segment.shipped_rows += batch.rows

    def rewind(self) -> None:
        """Begin again with the oldest segment that is still there."""
        for segment in self._segments:
            segment.read_end, segment.shipped_rows, segment.shipped_at = 0, 0, None

    def count_recovered_rows(self) -> int:
        """Count the rows of older runs by the heads of their frames, without checking them."""
        older = [segment for segment in list(self._segments) if not segment.is_open]
        for segment in older:
            segment.rows = self._count_rows(segment)
        return sum(segment.rows for segment in older)

    def _read_segment(self, segment: Segment) -> Batch:
        """Read a batch. Damage is put aside, a torn tail is dropped, both are counted."""
        start, end = segment.read_end, segment.readable_end
        try:
            descriptor = self._disk.open(segment.path)
        except FileNotFoundError:
            self._report(segment, Damage(start, end), b"")
            return Batch(segment, [], end)
        try:
            if start == 0 and decode_header(self._read_bytes(descriptor, min(HEADER_BYTES, end), 0)) is not None:
                start = HEADER_BYTES  # a damaged header is damage like any other
            data = self._read_bytes(descriptor, min(CHUNK_BYTES, end - start), start)
            frames, damages = read_frames(data, start)
            if not frames and len(data) == CHUNK_BYTES:
                data = self._read_bytes(descriptor, min(FRAME.size + MAX_PAYLOAD_BYTES, end - start), start)
                frames, damages = read_frames(data, start)
        finally:
            self._disk.close(descriptor)
        reached = self._find_end(data, start, end, frames, damages)
        for damage in damages:
            self._report(segment, damage, data[damage.start - start : damage.end - start])
        return Batch(segment, frames, reached)

    def _find_end(self, data: bytes, start: int, end: int, frames: list[Frame], damages: list[Damage]) -> int:
        """Return where the next read begins, and bring the last damage in line with it."""
        reached = start + len(data)
        has_open_end = bool(damages) and damages[-1].end == reached
        if reached < end and len(data) < min(CHUNK_BYTES, end - start):  # the file is shorter than what was promised
            begin = damages.pop().start if has_open_end else reached
            damages.append(Damage(begin, end))
            return end
        if reached == end or not has_open_end:
            return reached
        begin = damages.pop().start
        if frames:
            return begin  # a frame that goes on behind this chunk, or damage: seen when it is first
        reached = start + find_cut_off(data)  # no frame begins here, whatever its length
        damages.append(Damage(start, reached))
        return reached

    def _read_bytes(self, descriptor: int, size: int, start: int) -> bytes:
        """Read `size` bytes, fewer at the end of the file; zeros stand for pages that the disk cannot read."""
        try:
            return self._read_all(descriptor, size, start)
        except OSError as error:
            logger.warning("the spool's disk cannot read, going on page by page: %s", error)
        data = bytearray()
        while len(data) < size:
            step = min(PAGE_BYTES - (start + len(data)) % PAGE_BYTES, size - len(data))
            try:
                page = self._read_all(descriptor, step, start + len(data))
            except OSError:
                page = bytes(step)
            data += page
            if len(page) < step:
                break
        return bytes(data)

    def _read_all(self, descriptor: int, size: int, start: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self._disk.read(descriptor, size - len(data), start + len(data))
            if not part:
                break
            data = data + part if data else part
        return data

    def _report(self, segment: Segment, damage: Damage, data: bytes) -> None:
        """Drop a torn tail, which nobody was promised; copy anything else to corrupt/ for a person to look at."""
        place = (segment.sequence, damage.start)
        is_new = place not in self._reported
        self._reported.add(place)
        if is_unfinished(segment, damage):
            if is_new:
                metrics.SPOOL_TORN_TAILS.inc()
                logger.warning("dropped %d bytes that were never promised at the end of %s", len(data), segment.path)
            return
        if is_new:
            metrics.SPOOL_DAMAGED.inc()
            where = (segment.path, damage.start, damage.end)
            logger.error("%s is damaged from byte %d to %d: any rows there are put aside in corrupt/", *where)
        if damage.end <= HEADER_BYTES:
            return  # a header holds no row
        name = f"{segment.path.stem}-{damage.start}-{damage.end}"
        try:
            write_aside(self._disk, self._directory / "corrupt" / name, data)
        except OSError as error:
            segment.is_kept = True
            logger.error("%s stays, as its damage cannot be put aside: %s", segment.path, error)  # noqa: TRY400  # no bug

    def _count_rows(self, segment: Segment) -> int:
        rows, at = 0, HEADER_BYTES
        try:
            descriptor = self._disk.open(segment.path)
            try:
                data = self._read_bytes(descriptor, segment.readable_end, 0)
            finally:
                self._disk.close(descriptor)
        except OSError:
            return 0  # not known; the reader says that it cannot be read
        while at + FRAME.size <= len(data):
            magic, length, count, _ = FRAME.unpack_from(data, at)
            if magic != FRAME_MAGIC or at + FRAME.size + length > len(data):
                break
            rows += count
            at += FRAME.size + length
        return rows


def is_unfinished(segment: Segment, damage: Damage) -> bool:
    """Tell whether damage lies behind all that was promised, as far as that is known."""
    if segment.acknowledged is None:
        return damage.end >= segment.readable_end
    return damage.start >= segment.acknowledged


def find_segments(directory: Path, disk: Disk = DISK) -> tuple["deque[Segment]", bytes]:
    """Return the segments that are there, oldest first, and the spool's uuid, a new one for a new spool."""
    sequences = sorted(int(name[4:24]) for name in disk.list_names(directory) if SEGMENT_NAME.fullmatch(name))
    paths = [directory / name_segment(sequence) for sequence in sequences]
    headers = [_read_header(disk, path) for path in paths]
    segments: deque[Segment] = deque()
    for index, (sequence, path) in enumerate(zip(sequences, paths, strict=True)):
        after = headers[index + 1] if index + 1 < len(headers) else None
        is_next = after is not None and after.sequence == sequence + 1
        acknowledged = after.acknowledged_before if after is not None and is_next else None
        segments.append(Segment(sequence, path, max(disk.measure(path), acknowledged or 0), acknowledged))
    spools = [header.spool for header in headers if header is not None]
    return segments, spools[-1] if spools else uuid4().bytes


def name_segment(sequence: int) -> str:
    """Return the file name of a segment."""
    return f"seg-{sequence:020d}.log"


def _read_header(disk: Disk, path: Path) -> SegmentHeader | None:
    """Return the header; None where it is damaged or cannot be read, which costs no more than what it says."""
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
