"""The format of the spool's files."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.spool import segment as segment_module
from app.spool.segment import (
    HEADER_BYTES,
    Damage,
    SegmentHeader,
    decode_frame,
    decode_header,
    encode_frame,
    encode_header,
    find_cut_off,
    read_frames,
)

HEADER = SegmentHeader(bytes(range(16)), 7, 12345)


def test_header_is_the_documented_bytes() -> None:
    fields = b"SKSPOOL1" + bytes(range(16)) + struct.pack("<QQ", 7, 12345)

    assert encode_header(HEADER) == fields + struct.pack("<I", zlib.crc32(fields))


def test_frame_is_the_documented_bytes() -> None:
    crc = zlib.crc32(struct.pack("<II", 5, 2) + b"{},{}")

    assert encode_frame(b"{},{}", 2) == b"\xf5SKF" + struct.pack("<III", 5, 2, crc) + b"{},{}"


@pytest.mark.parametrize("acknowledged", [None, 0, 2**63])
def test_header_is_read_back(acknowledged: int | None) -> None:
    header = SegmentHeader(b"u" * 16, 2**64 - 1, acknowledged)

    assert decode_header(encode_header(header) + b"more") == header


def test_header_with_any_byte_changed_or_missing_is_none() -> None:
    data = encode_header(HEADER)

    for at in range(HEADER_BYTES):
        assert decode_header(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
        assert decode_header(data[:at]) is None


def test_frame_with_any_byte_changed_or_missing_is_none() -> None:
    data = encode_frame(b'{"a":1}', 1)

    for at in range(len(data)):
        assert decode_frame(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :], 0) is None
        assert decode_frame(data[:at], 0) is None


def test_frame_that_could_not_be_read_back_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "MAX_PAYLOAD_BYTES", 10)

    assert decode_frame(encode_frame(b"x" * 10, 1), 0) is not None
    with pytest.raises(ValueError, match="11 bytes"):
        encode_frame(b"x" * 11, 1)


@given(
    parts=st.lists(
        st.tuples(st.booleans(), st.binary(max_size=40) | st.sampled_from([b"\xf5SKF", b"\xf5SKF" * 9])), max_size=12
    )
)
def test_frames_between_anything_are_read_and_the_rest_is_damage(parts: list[tuple[bool, bytes]]) -> None:
    pieces = [encode_frame(payload, 1) if is_frame else payload for is_frame, payload in parts]
    data = b"".join(pieces)

    frames, damages = read_frames(data, 1000)

    assert [frame.payload for frame in frames] == [payload for is_frame, payload in parts if is_frame]
    covered = sorted([(frame.start, frame.end) for frame in frames] + [(hole.start, hole.end) for hole in damages])
    assert [start for start, _ in covered] == [1000, *(end for _, end in covered)][: len(covered)]
    assert sum(end - start for start, end in covered) == len(data)


def test_damage_lies_between_the_frames() -> None:
    frame = encode_frame(b"1", 1)

    _, damages = read_frames(frame + b"???" + frame + b"!", 0)

    assert damages == [Damage(len(frame), len(frame) + 3), Damage(2 * len(frame) + 3, 2 * len(frame) + 4)]


@pytest.mark.parametrize("cut", range(1, len(encode_frame(b"payload", 1))))
def test_find_cut_off_finds_where_a_frame_begins_that_is_not_all_there(cut: int) -> None:
    data = b"damage" + encode_frame(b"old", 1) + encode_frame(b"payload", 1)[:cut]
    begin = len(b"damage" + encode_frame(b"old", 1))

    assert min(begin, len(data) - 3) <= find_cut_off(data) <= begin
