"""Changing rows in files of a spool, on a disk that fails and loses power."""

import errno
from pathlib import Path
from random import Random

import pytest

from app.spool.rewriting import DRAFT, READ_BYTES, read_file, rewrite_file
from app.spool.segment import SegmentHeader, encode_frame, encode_header, read_frames
from tests.support.model_disk import ModelDisk, PowerLossError

PATH, DRAFT_PATH = Path("/spool/seg"), Path("/spool") / DRAFT

HEADER = encode_header(SegmentHeader(b"s" * 16, 0, None))

LARGE = b"y" * (READ_BYTES * 5 // 2)
"""A frame that no single read contains."""


def write(disk: ModelDisk, content: bytes) -> None:
    descriptor = disk.create(PATH)
    disk.write(descriptor, memoryview(content))
    disk.sync(descriptor)
    disk.close(descriptor)
    disk.sync_directory(PATH.parent)


def shout(rows: bytes, is_intact: bool) -> bytes:
    return rows.replace(b"secret", b"SECRET") if is_intact else rows.replace(b"secret", b"hidden")


@pytest.mark.parametrize("between", [b"", b"damage with a secret", b"\xf5SKF" * 5 + b"secret", b"\0" * READ_BYTES * 3])
def test_rewrite_keeps_positions_checksums_and_everything_else(between: bytes) -> None:
    disk = ModelDisk()
    payloads = [b"a", b"a secret", LARGE + b"secret", b"b", b"c" * 200_000] * 3
    frames = [encode_frame(payload, at) for at, payload in enumerate(payloads)]
    content = HEADER + between.join(frames) + b"torn secret"
    write(disk, content)

    rewrite_file(disk, PATH, DRAFT_PATH, shout)

    after = bytes(disk.names[PATH].seen)
    assert len(after) == len(content)
    before_frames, before_damages = read_frames(content, 0)
    after_frames, after_damages = read_frames(after, 0)
    assert after_damages == before_damages
    assert [frame.payload for frame in before_frames] == payloads
    assert [(one.payload, one.rows, one.start) for one in after_frames] == [
        (one.payload.replace(b"secret", b"SECRET"), one.rows, one.start) for one in before_frames
    ]
    for damage in before_damages:
        assert after[damage.start : damage.end] == content[damage.start : damage.end].replace(b"secret", b"hidden")
    assert list(disk.names) == [PATH]


def test_a_file_without_a_change_is_not_written() -> None:
    disk = ModelDisk()
    write(disk, HEADER + encode_frame(b"a", 1))
    inode = disk.names[PATH]

    rewrite_file(disk, PATH, DRAFT_PATH, shout)

    assert disk.names == {PATH: inode}


def test_power_loss_at_any_call_leaves_the_old_or_the_new_file() -> None:
    content = HEADER + encode_frame(b"a secret", 1) + encode_frame(b"x" * 3000, 1) + encode_frame(b"secret", 2)
    for at in range(1, 100):
        disk = ModelDisk()
        write(disk, content)
        disk.power_loss_at = disk.calls + at
        try:
            rewrite_file(disk, PATH, DRAFT_PATH, shout)
        except PowerLossError:
            states = {bytes(disk.lose_power(Random(seed)).names[PATH].seen) for seed in range(20)}
            assert states <= {content, rewritten(content)}
        else:
            assert at > 10
            return
    raise AssertionError("it makes more calls than expected")


def rewritten(content: bytes) -> bytes:
    frames, _ = read_frames(content, 0)
    return HEADER + b"".join(encode_frame(frame.payload.replace(b"secret", b"SECRET"), frame.rows) for frame in frames)


@pytest.mark.parametrize("call", ["open", "measure", "read", "create", "write", "sync", "replace"])
def test_a_call_that_fails_leaves_the_old_file(call: str) -> None:
    disk = ModelDisk()
    content = HEADER + encode_frame(b"a secret", 1)
    write(disk, content)
    disk.fault = lambda name: errno.EIO if name == call else None

    with pytest.raises(OSError, match="Input/output error"):
        rewrite_file(disk, PATH, DRAFT_PATH, shout)

    assert bytes(disk.names[PATH].seen) == content


def test_read_shows_every_frame_and_all_damage() -> None:
    disk = ModelDisk()
    write(disk, HEADER + encode_frame(b"one", 1) + b"damage" + encode_frame(LARGE, 1) + b"torn")
    seen: list[bytes] = []

    read_file(disk, PATH, seen.append)

    assert seen == [HEADER, b"one", b"damage", LARGE, b"torn"]
