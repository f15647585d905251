"""The reader over damaged, cut and unreadable segments."""

import errno
from collections import deque
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from app.spool import reader as reader_module
from app.spool import segment as segment_module
from app.spool.reader import SpoolReader
from app.spool.segment import HEADER_BYTES, Segment, SegmentHeader, encode_frame, encode_header
from app.spool.spool import Spool, name_segment, read_spool
from tests.support.model_disk import SECTOR_BYTES, Inode, ModelDisk

SPOOL = Path("/spool")
PAYLOADS = [b'{"n":%d}' % number * (1 + number % 3) for number in range(6)]
FRAMES = [encode_frame(payload, 2) for payload in PAYLOADS]
CONTENT = encode_header(SegmentHeader(b"u" * 16, 0, None)) + b"".join(FRAMES)


def make_disk(*contents: bytes, names: tuple[str, ...] = ()) -> ModelDisk:
    disk = ModelDisk()
    for index, content in enumerate(contents):
        name = names[index] if names else name_segment(index)
        disk.names[SPOOL / name] = Inode(bytearray(content), content)
    return disk


def end_segment(length: int) -> bytes:
    """A segment that says that `length` bytes of the one before were promised."""
    return encode_header(SegmentHeader(b"u" * 16, 1, length))


def open_reader(disk: ModelDisk) -> tuple[SpoolReader, "deque[Segment]"]:
    spool = read_spool(SPOOL, disk)
    return SpoolReader(spool), spool.segments


def read_all(reader: SpoolReader) -> list[bytes]:
    payloads: list[bytes] = []
    for _ in range(1000):
        chunk = reader.read()
        if chunk is None:
            return payloads
        payloads += [frame.payload for frame in chunk.frames]
        reader.advance(chunk)
    raise AssertionError("the reader does not come to an end")


def list_aside(disk: ModelDisk) -> dict[str, bytes]:
    return {path.name: bytes(inode.seen) for path, inode in disk.names.items() if path.parent == SPOOL / "corrupt"}


def read_counters() -> tuple[float, float]:
    """How many damaged places and torn tails have been counted."""
    names = ("prediction_log_spool_damaged_total", "prediction_log_spool_torn_tails_total")
    # Of these two alone: to collect what all tests have left in the registry takes longer than the test itself.
    families = REGISTRY.restricted_registry(names).collect()
    values = {sample.name: sample.value for family in families for sample in family.samples}
    return values[names[0]], values[names[1]]


def count_since(before: tuple[float, float]) -> tuple[float, float]:
    damaged, torn = read_counters()
    return damaged - before[0], torn - before[1]


def locate(frame: int) -> tuple[int, int]:
    start = HEADER_BYTES + sum(len(earlier) for earlier in FRAMES[:frame])
    return start, start + len(FRAMES[frame])


@pytest.mark.parametrize("is_known", [True, False], ids=["promised", "length not known"])
@pytest.mark.parametrize("kind", ["flip", "zero", "cut"])
def test_damage_at_any_offset_costs_only_what_it_touches(kind: str, is_known: bool) -> None:
    for at in range(len(CONTENT)):
        width = {"flip": 1, "zero": 9, "cut": len(CONTENT)}[kind]
        damaged = damage(CONTENT, at, kind)
        if damaged == CONTENT:
            continue
        disk = make_disk(damaged, *[end_segment(len(CONTENT))] * is_known)
        reader, _ = open_reader(disk)
        before = read_counters()

        found = read_all(reader)

        intact = [n for n in range(6) if locate(n)[1] <= at or locate(n)[0] >= at + width]
        assert [PAYLOADS.index(payload) for payload in found if payload in PAYLOADS] == intact or kind == "zero"
        assert set(found) <= set(PAYLOADS)
        assert {PAYLOADS[n] for n in intact} <= set(found)
        changes = count_since(before)
        if is_known:
            assert changes == (1, 0)
            assert len(list_aside(disk)) == (0 if at + width <= HEADER_BYTES else 1)
        else:
            assert sum(changes) <= 1
            assert sum(changes) == 1 or at in {0, HEADER_BYTES, *(locate(n)[1] for n in range(6))}


def damage(content: bytes, at: int, kind: str) -> bytes:
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]
    zeros = bytes(min(9, len(content) - at))
    return content[:at] + zeros + content[at + len(zeros) :]


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_everything_that_verifies_is_read_whatever_the_chunks(seed: int) -> None:
    rng = Random(seed)
    payloads = [rng.randbytes(rng.choice([1, 40, 300])).hex().encode() for _ in range(12)]
    pieces: list[bytes] = []
    for payload in payloads:
        frame = encode_frame(payload, 1)
        pieces += [rng.randbytes(rng.choice([1, 30, 900])), frame] if rng.random() < 0.4 else [frame]
        if rng.random() < 0.2:
            pieces.append(frame[: rng.randrange(1, len(frame))] + b"\xff")  # which completes no payload by chance
    disk = make_disk(encode_header(SegmentHeader(b"u" * 16, 0, None)) + b"".join(pieces))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "CHUNK_BYTES", 128)
        patch.setattr(reader_module, "MAX_PAYLOAD_BYTES", 600)
        patch.setattr(segment_module, "MAX_PAYLOAD_BYTES", 600)
        reader, _ = open_reader(disk)

        found = read_all(reader)

    assert found == payloads


def test_group_torn_at_any_sectors_is_read_frame_by_whole_frame() -> None:
    payloads = [b"%d" % number * 700 for number in range(4)]
    group = b"".join(encode_frame(payload, 1) for payload in payloads)
    sectors = [group[start : start + SECTOR_BYTES] for start in range(0, len(group), SECTOR_BYTES)]

    for kept in range(2 ** len(sectors)):
        parts = [part if kept >> index & 1 else bytes(len(part)) for index, part in enumerate(sectors)]
        whole = [
            payload
            for number, payload in enumerate(payloads)
            if b"".join(parts)[number * 716 : (number + 1) * 716] == encode_frame(payload, 1)
        ]
        reader, _ = open_reader(make_disk(CONTENT + b"".join(parts)))

        assert read_all(reader) == PAYLOADS + whole


def test_torn_tail_of_the_newest_segment_is_dropped_and_counted_once() -> None:
    disk = make_disk(CONTENT[:-3])
    reader, _ = open_reader(disk)
    before = read_counters()

    read_all(reader)
    reader.rewind()
    found = read_all(reader)

    assert found == PAYLOADS[:-1]
    assert count_since(before) == (0, 1)
    assert list_aside(disk) == {}


def test_bad_record_beyond_the_acknowledged_length_is_a_torn_tail() -> None:
    disk = make_disk(CONTENT + FRAMES[0][:-1], end_segment(len(CONTENT)))
    reader, _ = open_reader(disk)
    before = read_counters()

    assert read_all(reader) == PAYLOADS
    assert count_since(before) == (0, 1)


def test_damage_of_the_open_segment_is_damage_as_all_of_it_was_promised() -> None:
    disk = make_disk(CONTENT[:-1] + b"?")
    path = SPOOL / name_segment(0)
    segment = Segment(0, path, len(CONTENT), len(CONTENT), is_open=True)
    before = read_counters()

    read_all(SpoolReader(Spool(SPOOL, deque([segment]), b"u" * 16, disk)))

    assert count_since(before) == (1, 0)


def test_damage_is_put_aside_as_it_is_and_counted_once_in_two_passes() -> None:
    start, end = locate(2)
    disk = make_disk(CONTENT[: start + 20] + b"#" + CONTENT[start + 21 :])
    reader, _ = open_reader(disk)
    before = read_counters()

    first = read_all(reader)
    reader.rewind()
    second = read_all(reader)

    assert first == second == PAYLOADS[:2] + PAYLOADS[3:]
    assert count_since(before) == (1, 0)
    aside = list_aside(disk)
    assert aside == {f"seg-{0:020d}-{start}-{end}": FRAMES[2][:20] + b"#" + FRAMES[2][21:]}
    assert list_aside(disk.lose_power(Random(1))) == aside


def test_segment_whose_damage_cannot_be_put_aside_is_read_and_kept() -> None:
    start, _ = locate(2)
    disk = make_disk(CONTENT[: start + 20] + b"#" + CONTENT[start + 21 :])
    reader, segments = open_reader(disk)
    disk.fault = lambda name: errno.ENOSPC if name == "create" else None

    assert read_all(reader) == PAYLOADS[:2] + PAYLOADS[3:]
    assert segments[0].progress.is_kept


def test_promised_bytes_that_are_missing_are_counted_also_at_the_border_of_a_frame() -> None:
    disk = make_disk(CONTENT[: locate(4)[1]], end_segment(len(CONTENT)))
    reader, _ = open_reader(disk)
    before = read_counters()

    assert read_all(reader) == PAYLOADS[:5]
    assert count_since(before) == (1, 0)


@pytest.mark.parametrize("length", [0, 1, HEADER_BYTES - 1, HEADER_BYTES])
def test_segment_without_a_frame_is_finished(length: int) -> None:
    reader, segments = open_reader(make_disk(CONTENT[:length], CONTENT))

    assert read_all(reader) == PAYLOADS
    assert all(segment.is_finished for segment in segments)


def test_file_that_shrinks_while_it_is_read_comes_to_an_end() -> None:
    disk = make_disk(CONTENT)
    reader, segments = open_reader(disk)
    del disk.names[SPOOL / name_segment(0)].seen[locate(1)[1] :]

    assert read_all(reader) == PAYLOADS[:2]
    assert segments[0].is_finished


def test_segment_that_cannot_be_opened_does_not_hold_up_the_others() -> None:
    disk = make_disk(CONTENT, CONTENT.replace(b"n", b"m"))
    reader, segments = open_reader(disk)
    inode = disk.names[SPOOL / name_segment(0)]
    opened: list[str] = []

    def refuse_first(name: str) -> int | None:
        if name == "open":
            opened.append(name)
        return errno.EIO if name == "open" and len(opened) == 1 else None

    disk.fault = refuse_first
    read_all(reader)
    assert segments[1].is_finished
    assert not segments[0].is_finished
    assert SPOOL / name_segment(0) in disk.names
    assert disk.names[SPOOL / name_segment(0)] is inode

    segments[0].progress.retry_at = 0.0  # half a minute later
    assert read_all(reader) == PAYLOADS


def test_segment_that_somebody_removed_is_damage_and_not_waited_for() -> None:
    disk = make_disk(CONTENT, CONTENT)
    reader, segments = open_reader(disk)
    before = read_counters()
    segments[0].acknowledged = len(CONTENT)
    del disk.names[SPOOL / name_segment(0)]

    assert read_all(reader) == PAYLOADS
    assert segments[0].is_finished
    assert count_since(before) == (1, 0)


def test_page_that_the_disk_cannot_read_costs_only_its_frames() -> None:
    payloads = [b"%04d" % number * 250 for number in range(20)]
    disk = BadPageDisk(1)
    content = encode_header(SegmentHeader(b"u" * 16, 0, None)) + b"".join(encode_frame(one, 1) for one in payloads)
    disk.names[SPOOL / name_segment(0)] = Inode(bytearray(content), content)

    found = read_all(open_reader(disk)[0])

    size = len(encode_frame(payloads[0], 1))
    lost = [n for n in range(20) if HEADER_BYTES + n * size < 8192 and HEADER_BYTES + (n + 1) * size > 4096]
    assert found == [payload for n, payload in enumerate(payloads) if n not in lost]


class BadPageDisk(ModelDisk):
    """A disk with one page of each file that cannot be read."""

    def __init__(self, page: int) -> None:
        super().__init__()
        self.page = page

    def read(self, descriptor: int, size: int, offset: int) -> bytes:
        if offset < (self.page + 1) * 4096 and offset + size > self.page * 4096:
            raise OSError(errno.EIO, "bad sector")
        return super().read(descriptor, size, offset)


def test_pending_rows_are_right_after_recovery_damage_and_rewind() -> None:
    start, _ = locate(2)
    disk = make_disk(CONTENT[: start + 20] + b"#" + CONTENT[start + 21 :])
    spool = read_spool(SPOOL, disk)
    reader, segments = SpoolReader(spool), spool.segments

    assert spool.count_older_rows() == 12
    assert segments[0].pending_rows == 12
    read_all(reader)
    assert segments[0].pending_rows == 0
    reader.rewind()
    assert segments[0].pending_rows == 12


def test_read_spool_passes_over_other_files() -> None:
    disk = make_disk(CONTENT, b"", b"", names=(name_segment(3), "seg-1.log", "seg-notes.log"))

    spool = read_spool(SPOOL, disk)

    assert [segment.sequence for segment in spool.segments] == [3]
    assert spool.uuid == b"u" * 16


def test_acknowledged_length_counts_only_for_the_segment_right_before() -> None:
    later = encode_header(SegmentHeader(b"u" * 16, 2, 100))
    disk = make_disk(CONTENT, later, names=(name_segment(0), name_segment(2)))

    segments = read_spool(SPOOL, disk).segments

    assert segments[0].acknowledged is None
