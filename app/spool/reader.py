"""Read the spool: in order, only promised rows; continue after damage, and report it."""

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
"""Bytes read for one chunk, about 2,000 rows; a longer frame is read completely."""

RETRY_SECONDS = 30.0
"""How long a segment that cannot be opened is skipped; the others are read meanwhile."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The result of one read: frames of one segment, and the position at which its next read begins."""

    segment: Segment
    frames: list[Frame]
    end: int

    @property
    def rows(self) -> int:
        """The number of rows in all frames."""
        return sum(frame.rows for frame in self.frames)


class SpoolReader:
    """Reads each segment from its last position on. Reads block on the disk: call them in a thread, one at a time."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._reported: set[tuple[int, int]] = set()

    def read(self) -> Chunk | None:
        """Return the next chunk, None when all promised rows are read. Call `advance` before the next `read`."""
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
                logger.error("%s cannot be read, it is kept and tried again: %s", segment.path, error)  # noqa: TRY400  # not a bug
        return None

    def advance(self, chunk: Chunk) -> None:
        """Move to the end of a chunk, whose rows are stored or put aside."""
        chunk.segment.progress.read_end = chunk.end
        chunk.segment.progress.shipped_rows += chunk.rows

    def mark_shipped(self) -> None:
        """Mark finished segments as shipped, also one that was closed after its last row was shipped."""
        for segment in self._spool.segments:
            progress = segment.progress
            if segment.is_finished and progress.shipped_at is None and not progress.is_kept:
                progress.shipped_at = time.monotonic()

    def rewind(self) -> None:
        """Read all segments again, from the oldest that is still kept."""
        for segment in self._spool.segments:
            progress = segment.progress
            progress.read_end, progress.shipped_rows, progress.shipped_at = 0, 0, None

    def _read_segment(self, segment: Segment) -> Chunk:
        """Read a chunk. Put damaged bytes aside, drop a torn tail, and count both."""
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
                start = HEADER_BYTES  # a damaged header is handled like other damage
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
        """Return where the next read begins; change the last of `damages` to end there."""
        reached = start + len(data)
        has_open_end = bool(damages) and damages[-1].end == reached
        if reached < end and len(data) < min(CHUNK_BYTES, end - start):  # the file is shorter than promised
            begin = damages.pop().start if has_open_end else reached
            damages.append(Damage(begin, end))
            return end
        if reached == end or not has_open_end:
            return reached
        begin = damages.pop().start
        if frames:
            return begin  # a frame that continues after this chunk, or damage: the next read begins with it
        reached = start + find_cut_off(data)  # no frame begins at `start`, of any length
        damages.append(Damage(start, reached))
        return reached

    def _report(self, segment: Segment, damage: Damage, data: bytes) -> None:
        """Drop a torn tail, whose rows were never promised; copy other damage to corrupt/ for a person to check."""
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
            logger.error("%s is damaged from byte %d to %d: these bytes are copied to corrupt/", *where)
        if damage.end <= HEADER_BYTES:
            return  # a header has no rows
        name = f"{segment.path.stem}-{damage.start}-{damage.end}"
        try:
            self._spool.put_aside("corrupt", name, data)
        except OSError as error:
            segment.progress.is_kept = True
            logger.error("%s is kept, because its damage cannot be copied: %s", segment.path, error)  # noqa: TRY400  # not a bug


def is_torn_tail(segment: Segment, damage: Damage) -> bool:
    """Return whether damage lies after all promised rows; if that is not known, whether it is at the end."""
    if segment.acknowledged is None:
        return damage.end >= segment.readable_end
    return damage.start >= segment.acknowledged
