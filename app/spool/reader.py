"""Read the spool back: in order, only what was promised, and past damage without losing it from sight."""

import logging
import time
from dataclasses import dataclass

from app import metrics
from app.spool.disk import read_bytes
from app.spool.segment import (
    FRAME,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    Damage,
    Frame,
    Segment,
    decode_header,
    find_cut_off,
    read_frames,
)
from app.spool.spool import Spool

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1024**2
"""Bytes read for one chunk, 2,000 rows or so; a longer frame is read whole."""

RETRY_SECONDS = 30.0
"""How long a segment that cannot be opened is passed over; the others go on meanwhile."""


@dataclass(frozen=True, slots=True)
class Chunk:
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

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._reported: set[tuple[int, int]] = set()

    def read(self) -> Chunk | None:
        """Return the next chunk, None when everything that was promised has been read. Does not move on."""
        now = time.monotonic()
        for segment in list(self._spool.segments):
            progress = segment.progress
            is_done = progress.shipped_at is not None or progress.read_end >= segment.readable_end
            if is_done or progress.retry_at > now:
                continue
            try:
                return self._read_segment(segment)
            except OSError as error:
                progress.retry_at = now + RETRY_SECONDS
                logger.error("%s cannot be read, it stays and is tried again: %s", segment.path, error)  # noqa: TRY400  # no bug
        return None

    def advance(self, chunk: Chunk) -> None:
        """Move on behind a chunk that has been dealt with."""
        chunk.segment.progress.read_end = chunk.end
        chunk.segment.progress.shipped_rows += chunk.rows

    def mark_shipped(self) -> None:
        """Mark finished segments as shipped, also one that was closed after its last row had been dealt with."""
        for segment in self._spool.segments:
            progress = segment.progress
            if segment.is_finished and progress.shipped_at is None and not progress.is_kept:
                progress.shipped_at = time.monotonic()

    def rewind(self) -> None:
        """Begin again with the oldest segment that is still there."""
        for segment in self._spool.segments:
            progress = segment.progress
            progress.read_end, progress.shipped_rows, progress.shipped_at = 0, 0, None

    def _read_segment(self, segment: Segment) -> Chunk:
        """Read a chunk. Damage is put aside, a torn tail is dropped, both are counted."""
        start, end = segment.progress.read_end, segment.readable_end
        try:
            descriptor = self._spool.disk.open(segment.path)
        except FileNotFoundError:
            self._report(segment, Damage(start, end), b"")
            return Chunk(segment, [], end)
        try:
            if (
                start == 0
                and decode_header(read_bytes(self._spool.disk, descriptor, min(HEADER_BYTES, end), 0)) is not None
            ):
                start = HEADER_BYTES  # a damaged header is damage like any other
            data = read_bytes(self._spool.disk, descriptor, min(CHUNK_BYTES, end - start), start)
            frames, damages = read_frames(data, start)
            if not frames and len(data) == CHUNK_BYTES:
                data = read_bytes(self._spool.disk, descriptor, min(FRAME.size + MAX_PAYLOAD_BYTES, end - start), start)
                frames, damages = read_frames(data, start)
        finally:
            self._spool.disk.close(descriptor)
        reached = self._find_end(data, start, end, frames, damages)
        for damage in damages:
            self._report(segment, damage, data[damage.start - start : damage.end - start])
        return Chunk(segment, frames, reached)

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

    def _report(self, segment: Segment, damage: Damage, data: bytes) -> None:
        """Drop a torn tail, which nobody was promised; copy anything else to corrupt/ for a person to look at."""
        place = (segment.sequence, damage.start)
        is_new = place not in self._reported
        self._reported.add(place)
        if is_torn_tail(segment, damage):
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
            self._spool.put_aside("corrupt", name, data)
        except OSError as error:
            segment.progress.is_kept = True
            logger.error("%s stays, as its damage cannot be put aside: %s", segment.path, error)  # noqa: TRY400  # no bug


def is_torn_tail(segment: Segment, damage: Damage) -> bool:
    """Return whether damage lies behind all that was promised, as far as that is known."""
    if segment.acknowledged is None:
        return damage.end >= segment.readable_end
    return damage.start >= segment.acknowledged
