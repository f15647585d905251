"""The spool's file format: append-only segments of checksummed frames, read back frame by frame.

A segment is a header and then frames, one per request. Integers are little-endian:

    header  magic 8s | spool uuid 16s | sequence u64 | acknowledged length of the segment before u64 | crc u32
    frame   magic 4s | length u32 | rows u32 | crc u32 over length, rows and payload | payload

The payload is the request's rows as JSON objects, joined by commas, so that a batch of frames is a JSON array when put
in brackets, and an operator can read what is on the disk.
"""

import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

HEADER = struct.Struct("<8s16sQQ")
HEADER_CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + HEADER_CRC.size
SEGMENT_MAGIC = b"SKSPOOL1"
"""The last character is the version of the format."""

NOT_KNOWN = 2**64 - 1

FRAME = struct.Struct("<4sIII")
FRAME_MAGIC = b"\xf5SKF"
"""Begins with a byte that no UTF-8 text contains, so that it is not found inside a payload."""

FRAME_LENGTHS = struct.Struct("<II")

MAX_PAYLOAD_BYTES = 32 * 1024**2
"""A longer frame is damage: many rows are spread over several frames, and no row is as long."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Which segment it is, and how much of the one before had been acknowledged when it was begun, None: not known."""

    spool: bytes
    sequence: int
    acknowledged_before: int | None


@dataclass(frozen=True, slots=True)
class Frame:
    """Rows of one request: `payload` is `rows` JSON objects joined by commas; `end` is where the next one begins."""

    payload: bytes
    rows: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes from `start` to `end` that are no valid frame."""

    start: int
    end: int


@dataclass(slots=True)
class Progress:
    """What the reader has done with a segment, counted from its beginning.

    `shipped_at`: when all of it had been dealt with, monotonic. `is_kept`: something of the file is nowhere else, so it
    must not be removed. `retry_at`: the file cannot be opened, and is passed over until then, monotonic.
    """

    read_end: int = 0
    shipped_rows: int = 0
    shipped_at: float | None = None
    is_kept: bool = False
    retry_at: float = 0.0


@dataclass(slots=True)
class Segment:
    """A file of the spool, as its writer knows it, with the reader's progress.

    `readable_end` is how far it may be read: what was promised, or all of an older file. `acknowledged` is how much had
    been promised for certain, None where that is not known.
    """

    sequence: int
    path: Path
    readable_end: int
    acknowledged: int | None
    is_open: bool = False
    rows: int = 0
    progress: Progress = field(default_factory=Progress)

    @property
    def is_finished(self) -> bool:
        """Return whether all of a closed segment has been dealt with."""
        return not self.is_open and self.progress.read_end >= self.readable_end

    @property
    def pending_rows(self) -> int:
        """Rows that wait; what damage has cost no longer does once the end is reached."""
        return 0 if self.is_finished else max(0, self.rows - self.progress.shipped_rows)


def encode_header(header: SegmentHeader) -> bytes:
    """Return the first bytes of a segment."""
    before = NOT_KNOWN if header.acknowledged_before is None else header.acknowledged_before
    fields = HEADER.pack(SEGMENT_MAGIC, header.spool, header.sequence, before)
    return fields + HEADER_CRC.pack(zlib.crc32(fields))


def decode_header(data: bytes) -> SegmentHeader | None:
    """Return the header at the beginning of a segment, None when it is damaged or torn."""
    if len(data) < HEADER_BYTES:
        return None
    magic, spool, sequence, acknowledged_before = HEADER.unpack_from(data)
    (crc,) = HEADER_CRC.unpack_from(data, HEADER.size)
    if magic != SEGMENT_MAGIC or crc != zlib.crc32(data[: HEADER.size]):
        return None
    return SegmentHeader(spool, sequence, None if acknowledged_before == NOT_KNOWN else acknowledged_before)


def encode_frame(payload: bytes, rows: int) -> bytes:
    """Return the bytes of a frame. ValueError: too long to be read back, so that it must not be promised."""
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a frame of {length} bytes, allowed are {MAX_PAYLOAD_BYTES}")
    crc = zlib.crc32(payload, zlib.crc32(FRAME_LENGTHS.pack(length, rows)))
    return FRAME.pack(FRAME_MAGIC, length, rows, crc) + payload


def decode_frame(data: bytes, at: int, base: int = 0) -> Frame | None:
    """Return the frame that begins at `data[at]`, None when none does or it is not all there.

    `base` is where `data` begins in its segment; the frame's own positions are the segment's.
    """
    begin = at + FRAME.size
    if begin > len(data):
        return None
    magic, length, rows, crc = FRAME.unpack_from(data, at)
    if magic != FRAME_MAGIC or length > MAX_PAYLOAD_BYTES or begin + length > len(data):
        return None
    payload = data[begin : begin + length]
    if zlib.crc32(payload, zlib.crc32(FRAME_LENGTHS.pack(length, rows))) != crc:
        return None
    return Frame(payload, rows, base + at, base + begin + length)


def read_frames(data: bytes, base: int) -> tuple[list[Frame], list[Damage]]:
    """Read all frames of `data`, which begins at `base` of its segment; what lies between valid ones is damage.

    Damage that reaches to the end of `data` may be a frame that is not all there yet, or a torn one.
    """
    frames: list[Frame] = []
    damages: list[Damage] = []
    at = 0
    while at < len(data):
        frame = decode_frame(data, at, base)
        if frame is None:
            begin = at
            at = _find_frame(data, at + 1)
            damages.append(Damage(base + begin, base + at))
        else:
            frames.append(frame)
            at = frame.end - base
    return frames, damages


def find_cut_off(data: bytes) -> int:
    """Return where, behind its first byte, a frame may begin that is not all in `data`; at the latest near its end."""
    at = 1
    while (at := data.find(FRAME_MAGIC, at)) >= 0:
        begin = at + FRAME.size
        if begin > len(data):
            return at
        length = FRAME.unpack_from(data, at)[1]
        if length <= MAX_PAYLOAD_BYTES and begin + length > len(data):
            return at
        at += 1
    return max(1, len(data) - len(FRAME_MAGIC) + 1)


def _find_frame(data: bytes, at: int) -> int:
    """Return where the next valid frame begins, the end of `data` when there is none."""
    while (at := data.find(FRAME_MAGIC, at)) >= 0:
        if decode_frame(data, at) is not None:
            return at
        at += 1
    return len(data)
