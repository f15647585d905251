"""Read the spool back: in order, only what was promised, and past damage without losing it from sight."""

import logging
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from app import metrics
from app.prediction_log.journal import Segment, write_all
from app.prediction_log.segment import (
    FRAME,
    FRAME_MAGIC,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Damage,
    Frame,
    decode_header,
    read_frames,
)

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024**2
"""Bytes read for one batch, 2,000 rows or so; a longer frame is read whole."""


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
    """A position in the spool. Reads block on the disk: call them in a thread, one at a time."""

    def __init__(self, segments: "deque[Segment]", directory: Path) -> None:
        self._segments = segments
        self._directory = directory
        self._sequence = -1
        self._offset = 0

    def read(self) -> Batch | None:
        """Return the next batch, None when everything that was promised has been read. Does not move on."""
        for segment in list(self._segments):
            if segment.sequence < self._sequence or segment.shipped_at is not None:
                continue
            start = self._offset if segment.sequence == self._sequence else 0
            batch = self._read_segment(segment, start)
            if batch is not None:
                return batch
        return None

    def advance(self, batch: Batch) -> None:
        """Move on behind a batch that has been dealt with."""
        self._sequence, self._offset = batch.segment.sequence, batch.end

    def is_finished(self, segment: Segment) -> bool:
        """Tell whether all of a closed segment has been read."""
        if segment.is_open or segment.sequence > self._sequence:
            return False
        return segment.sequence < self._sequence or self._offset >= segment.readable_end

    def rewind(self) -> None:
        """Begin again with the oldest segment that is still there."""
        self._sequence, self._offset = -1, 0

    def count_recovered_rows(self) -> int:
        """Count the rows of older runs by the heads of their frames, without checking them."""
        return sum(_count_rows(segment.path) for segment in list(self._segments) if not segment.is_open)

    def _read_segment(self, segment: Segment, start: int) -> Batch | None:
        """Read from `start`; None at the end. Damage is put aside, a torn tail is dropped, both are counted."""
        end = segment.readable_end
        if start >= end:
            return None
        descriptor = os.open(segment.path, os.O_RDONLY)
        try:
            if start == 0:
                start = self._read_header(segment, descriptor)
            if start >= end:
                return Batch(segment, [], end) if not segment.is_open else None
            size = min(CHUNK_BYTES, end - start)
            data = os.pread(descriptor, size, start)
            frames, damages = read_frames(data, start)
            if not frames and start + size < end:
                data = os.pread(descriptor, min(end - start, FRAME.size + MAX_PAYLOAD_BYTES), start)
                frames, damages = read_frames(data, start)
        finally:
            os.close(descriptor)
        reached = start + len(data)
        if damages and damages[-1].end == reached < end:
            reached = damages.pop().start  # a frame that goes on behind this chunk, or damage: seen when it is first
            if reached == start:
                reached = end  # not one frame in the rest, whatever its length
                damages.append(Damage(start, end))
        for damage in damages:
            self._put_aside(segment, damage, data[damage.start - start : damage.end - start])
        return Batch(segment, frames, reached)

    def _read_header(self, segment: Segment, descriptor: int) -> int:
        """Return where frames begin; a damaged header costs nothing but itself, a torn one has nothing behind it."""
        if segment.readable_end > HEADER_BYTES and decode_header(os.pread(descriptor, HEADER_BYTES, 0)) is None:
            metrics.SPOOL_DAMAGED.inc()
            logger.error("the header of %s is damaged", segment.path)
        return HEADER_BYTES

    def _put_aside(self, segment: Segment, damage: Damage, data: bytes) -> None:
        """Drop a torn tail, which nobody was promised; copy anything else to corrupt/ for a person to look at."""
        torn = damage.end >= segment.readable_end and segment.acknowledged is None
        if torn or (segment.acknowledged is not None and damage.start >= segment.acknowledged):
            metrics.SPOOL_TORN_TAILS.inc()
            logger.warning("dropped %d bytes that were never promised at the end of %s", len(data), segment.path)
            return
        metrics.SPOOL_DAMAGED.inc()
        logger.error("%s is damaged from byte %d to %d: put aside in corrupt/", segment.path, damage.start, damage.end)
        write_aside(self._directory / "corrupt", f"{segment.path.stem}-{damage.start}-{damage.end}", data)


def _count_rows(path: Path) -> int:
    rows, at = 0, HEADER_BYTES
    data = path.read_bytes()
    while at + FRAME.size <= len(data):
        magic, length, count, _ = FRAME.unpack_from(data, at)
        if magic != FRAME_MAGIC:
            break
        rows += count
        at += FRAME.size + length
    return rows


def write_aside(directory: Path, name: str, data: bytes) -> None:
    """Keep bytes in a file of their own, on the disk when this returns; the same name again is the same bytes."""
    directory.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
