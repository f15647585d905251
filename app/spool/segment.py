"""The spool's file format: append-only segments of frames with checksums, which are read frame by frame.

A segment is a header followed by frames. Integers are little-endian:

    header  magic 8s | spool uuid 16s | sequence u64 | acknowledged length of the segment before u64 | crc u32
    frame   magic 4s | length u32 | rows u32 | crc u32 over length, rows and payload | payload

A frame has rows of one batch, whatever the requests that they came from; a long batch has several frames. A payload has
rows as JSON objects, joined by commas. So payloads of several frames, joined by commas in brackets, are a
JSON array, and an operator can read the file.
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
"""Begins with a byte that UTF-8 text cannot contain, so that no payload contains it."""

FRAME_LENGTHS = struct.Struct("<II")

MAX_PAYLOAD_BYTES = 32 * 1024**2
"""A longer frame counts as damage: many rows are split into several frames, and a single row is not so long."""


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Identifies a segment. `acknowledged_before`: promised length of the segment before it, None when not known."""

    spool: bytes
    sequence: int
    acknowledged_before: int | None


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: `payload` has `rows` JSON objects joined by commas; `end` is where the next frame begins."""

    payload: bytes
    rows: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes from `start` to `end` that are not a valid frame."""

    start: int
    end: int


@dataclass(slots=True)
class Progress:
    """What the reader has done with a segment.

    `read_end`: how far it is read. `shipped_at`: when all of it was stored or put aside (monotonic clock). `is_kept`:
    damaged bytes could not be copied, so the file must not be removed. `retry_at`: the file could not be opened, and is
    skipped until then (monotonic clock).
    """

    read_end: int = 0
    shipped_rows: int = 0
    shipped_at: float | None = None
    is_kept: bool = False
    retry_at: float = 0.0


@dataclass(slots=True)
class Segment:
    """A file of the spool, with what its writer knows and with the reader's progress.

    `readable_end`: the file may be read up to here; it is the promised length, or the whole length of an older file.
    `acknowledged`: the length that was certainly promised, None when it is not known. `is_held`: the file is being
    rewritten and must not be removed.
    """

    sequence: int
    path: Path
    readable_end: int
    acknowledged: int | None
    is_open: bool = False
    is_held: bool = False
    rows: int = 0
    progress: Progress = field(default_factory=Progress)

    @property
    def is_finished(self) -> bool:
        """Whether the segment is closed and all of it is stored or put aside."""
        return not self.is_open and self.progress.read_end >= self.readable_end

    @property
    def pending_rows(self) -> int:
        """Rows that are not shipped yet; 0 when the segment is finished, even if damage has lost some."""
        return 0 if self.is_finished else max(0, self.rows - self.progress.shipped_rows)


def encode_header(header: SegmentHeader) -> bytes:
    """Return the bytes of a segment's header."""
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
    """Return the bytes of a frame; raise ValueError when it is too long to be read back, so that it is not promised."""
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise ValueError(f"the frame has {length} bytes, allowed are {MAX_PAYLOAD_BYTES}")
    crc = zlib.crc32(payload, zlib.crc32(FRAME_LENGTHS.pack(length, rows)))
    return FRAME.pack(FRAME_MAGIC, length, rows, crc) + payload


def decode_frame(data: bytes, at: int, base: int = 0) -> Frame | None:
    """Return the frame that begins at `data[at]`, None when there is none or it is not complete.

    `base` is the position of `data` in its segment; the positions in the frame are those in the segment.
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
    """Read all frames of `data`, whose position in its segment is `base`; bytes between valid frames are damage.

    Damage at the end of `data` may be a frame that continues after `data`, or a torn frame.
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
    """Return where, after the first byte, a frame may begin that continues after `data`; at the latest near its end."""
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
    """Return where the next valid frame begins, or the end of `data` when there is none."""
    while (at := data.find(FRAME_MAGIC, at)) >= 0:
        if decode_frame(data, at) is not None:
            return at
        at += 1
    return len(data)
