"""The spool's disk: its system calls in one place, and what is done with several of them."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from app import files

logger = logging.getLogger(__name__)

sync_file = getattr(os, "fdatasync", os.fsync)
"""fdatasync where there is one; macOS has only fsync."""


class Disk:
    """The system calls of the spool, which raise OSError; tests make each of them fail."""

    def list_names(self, directory: Path) -> list[str]:
        """Return the names in a directory."""
        return os.listdir(directory)  # noqa: PTH208  # names, not paths

    def make_directory(self, path: Path, mode: int) -> None:
        """Make a directory; FileExistsError when it is there."""
        path.mkdir(mode=mode)

    def create(self, path: Path) -> int:
        """Open a new file for appending; FileExistsError when there is one."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)

    def open(self, path: Path) -> int:
        """Open a file for reading."""
        return os.open(path, os.O_RDONLY)

    def measure(self, path: Path) -> int:
        """Return the size of a file in bytes."""
        return path.stat().st_size

    def read(self, descriptor: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes."""
        return os.pread(descriptor, size, offset)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Append; return how many bytes were taken, which may be fewer."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Bring a file's data to the disk."""
        sync_file(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def sync_directory(self, path: Path) -> None:
        """Bring a directory's entries to the disk."""
        files.sync_directory(path)

    def measure_free(self, directory: Path) -> int:
        """Return how many bytes of the file system are free."""
        return shutil.disk_usage(directory).free


DISK = Disk()

PAGE_BYTES = 4096
"""What is given up at once where the disk cannot read."""


def write_all(disk: Disk, descriptor: int, data: bytes) -> None:
    """Write everything: a nearly full disk takes a part of it first."""
    view = memoryview(data)
    while view:
        view = view[disk.write(descriptor, view) :]


def read_bytes(disk: Disk, descriptor: int, size: int, start: int) -> bytes:
    """Read `size` bytes, fewer at the end of the file; zeros stand for pages that the disk cannot read."""
    try:
        return _read_all(disk, descriptor, size, start)
    except OSError as error:
        logger.warning("the spool's disk cannot read, going on page by page: %s", error)
    data = bytearray()
    while len(data) < size:
        step = min(PAGE_BYTES - (start + len(data)) % PAGE_BYTES, size - len(data))
        try:
            page = _read_all(disk, descriptor, step, start + len(data))
        except OSError:
            page = bytes(step)
        data += page
        if len(page) < step:
            break
    return bytes(data)


def _read_all(disk: Disk, descriptor: int, size: int, start: int) -> bytes:
    data = b""
    while len(data) < size:
        part = disk.read(descriptor, size - len(data), start + len(data))
        if not part:
            break
        data = data + part if data else part
    return data


# Not by app.files: a segment has a new name, so it replaces nothing; it stays open for what is appended later; and each
# call goes through a Disk, so that tests make any of them fail or take the power.


def create_file(disk: Disk, path: Path, data: bytes) -> int:
    """Create a file, with its entry on the disk when this returns its descriptor; leave none when that fails."""
    try:
        descriptor = disk.create(path)
    except FileExistsError:  # left by an attempt that could not remove it either
        disk.unlink(path)
        descriptor = disk.create(path)
    try:
        write_all(disk, descriptor, data)
        disk.sync(descriptor)
        disk.sync_directory(path.parent)
    except OSError:
        with suppress(OSError):
            disk.close(descriptor)
        with suppress(OSError):
            disk.unlink(path)
        raise
    return descriptor


def make_directories(disk: Disk, path: Path, mode: int = 0o700) -> None:
    """Make a directory and, as open as usual, its parents, if they are not there, with their entries on the disk."""
    if path.parent != path and not path.parent.is_dir():
        make_directories(disk, path.parent, 0o777)
    harmless: type[OSError] = PermissionError  # a parent that is closed to us was not made by us
    try:
        disk.make_directory(path, mode)
    except FileExistsError:
        harmless = OSError  # it has most likely been synced when it was made, and its disk may be failing by now
    with suppress(harmless):
        disk.sync_directory(path.parent)
