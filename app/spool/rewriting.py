"""Change rows in the files of a spool: a new file of the same length, with valid checksums, replaces the old one."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from app.spool.disk import Disk, read_all, write_all
from app.spool.segment import Frame, encode_frame, read_frames

READ_BYTES = 1024**2
"""Bytes read at a time; more for a longer frame or longer damage."""

DRAFT = "rewrite.tmp"
"""The new file until it is complete. After a crash it is left, with copies of rows: it is removed at the next start."""

ChangeRows = Callable[[bytes, bool], bytes]
"""Takes bytes, and whether a checksum confirms that they are the rows of a frame; returns as many bytes."""


def rewrite_file(disk: Disk, path: Path, draft: Path, change: ChangeRows) -> None:
    """Change the rows of a file, and replace it if any has changed. Blocks; raises OSError, and keeps the old file."""
    source = disk.open(path)
    try:
        size = disk.measure(path)
        pieces = _read_pieces(disk, source, size)
        changed = [(start, new) for start, data, frame in pieces if (new := _change(data, frame, change)) != data]
        if changed:
            _write_draft(disk, source, size, draft, changed)
            disk.replace(draft, path)
            disk.sync_directory(path.parent)
    finally:
        disk.close(source)


def read_file(disk: Disk, path: Path, look: Callable[[bytes], None]) -> None:
    """Call `look` with the payload of each frame of a file and with its damaged bytes. Blocks; raises OSError."""
    source = disk.open(path)
    try:
        for _, data, frame in _read_pieces(disk, source, disk.measure(path)):
            look(data if frame is None else frame.payload)
    finally:
        disk.close(source)


def _read_pieces(disk: Disk, descriptor: int, size: int) -> Iterator[tuple[int, bytes, Frame | None]]:
    """Yield the frames of a file and what stands between them, in order: position, bytes, and the frame if it is one.

    All bytes of damage come in one piece. A page that the disk cannot read raises OSError: its rows would be lost.
    """
    at, length = 0, READ_BYTES
    while at < size:
        data = read_all(disk, descriptor, min(length, size - at), at)
        if not data:
            return  # the file is shorter than it was
        frames, damages = read_frames(data, at)
        end = at + len(data)
        if end < size and damages and damages[-1].end == end:
            end = damages.pop().start  # a frame or damage that may continue: the next read begins with it
        if end == at:
            length *= 2
            continue
        framed = {frame.start: frame for frame in frames}
        places = [(frame.start, frame.end) for frame in frames] + [(damage.start, damage.end) for damage in damages]
        for start, stop in sorted(places):
            yield start, data[start - at : stop - at], framed.get(start)
        at, length = end, READ_BYTES


def _change(data: bytes, frame: Frame | None, change: ChangeRows) -> bytes:
    if frame is None:
        return change(data, False)
    payload = change(frame.payload, True)
    return data if payload == frame.payload else encode_frame(payload, frame.rows)


def _write_draft(disk: Disk, source: int, size: int, draft: Path, changed: list[tuple[int, bytes]]) -> None:
    """Write a copy of the source with the changed bytes, and sync it to the disk."""
    remove_draft(disk, draft)
    target = disk.create(draft)
    try:
        at = 0
        for start, data in [*changed, (size, b"")]:
            _copy_bytes(disk, source, target, at, start)
            write_all(disk, target, data)
            at = start + len(data)
        disk.sync(target)
    except OSError:
        with suppress(OSError):
            disk.unlink(draft)
        raise
    finally:
        with suppress(OSError):  # it is synced, or it is not used
            disk.close(target)


def _copy_bytes(disk: Disk, source: int, target: int, at: int, end: int) -> None:
    while at < end:
        data = read_all(disk, source, min(READ_BYTES, end - at), at)
        if not data:
            raise OSError("a file of the spool has become shorter")
        write_all(disk, target, data)
        at += len(data)


def remove_draft(disk: Disk, draft: Path) -> None:
    """Remove what an interrupted rewriting has left."""
    try:
        disk.unlink(draft)
    except FileNotFoundError:
        return
