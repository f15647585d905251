"""The spool's disk: all its system calls, and functions that use several of them."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from app import files

logger = logging.getLogger(__name__)

sync_file = getattr(os, "fdatasync", os.fsync)
"""fdatasync where it exists; macOS has only fsync."""


class Disk:
    """The system calls of the spool, which raise OSError; tests make each of them fail."""

    def list_names(self, directory: Path) -> list[str]:
        """Return the names in a directory."""
        return os.listdir(directory)  # noqa: PTH208  # names, not paths

    def make_directory(self, path: Path, mode: int) -> None:
        """Make a directory; raise FileExistsError when it exists."""
        path.mkdir(mode=mode)

    def create(self, path: Path) -> int:
        """Create a file and open it for appending; raise FileExistsError when it exists."""
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
        """Append data; return how many bytes were written, which may be fewer."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Sync a file's data to the disk."""
        sync_file(descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file to a size."""
        os.ftruncate(descriptor, size)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        os.close(descriptor)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def replace(self, path: Path, target: Path) -> None:
        """Rename a file; one with the new name is replaced."""
        path.replace(target)

    def sync_directory(self, path: Path) -> None:
        """Sync a directory's entries to the disk."""
        files.sync_directory(path)

    def measure_free(self, directory: Path) -> int:
        """Return the free bytes of the directory's file system."""
        return shutil.disk_usage(directory).free


DISK = Disk()

PAGE_BYTES = 4096
"""When the disk cannot read some bytes, the whole page of this size is given up."""


def write_all(disk: Disk, descriptor: int, data: bytes) -> None:
    """Write all of `data`, repeatedly if needed: a nearly full disk may write only a part."""
    view = memoryview(data)
    while view:
        view = view[disk.write(descriptor, view) :]


def read_bytes(disk: Disk, descriptor: int, size: int, start: int) -> bytes:
    """Read `size` bytes, fewer at the end of the file; pages that the disk cannot read are zeros."""
    try:
        return read_all(disk, descriptor, size, start)
    except OSError as error:
        logger.warning("the spool's disk cannot read, trying again page by page: %s", error)
    data = bytearray()
    while len(data) < size:
        step = min(PAGE_BYTES - (start + len(data)) % PAGE_BYTES, size - len(data))
        try:
            page = read_all(disk, descriptor, step, start + len(data))
        except OSError:
            page = bytes(step)
        data += page
        if len(page) < step:
            break
    return bytes(data)


def read_all(disk: Disk, descriptor: int, size: int, start: int) -> bytes:
    """Read `size` bytes, fewer at the end of the file; raise OSError when the disk cannot read one of them."""
    data = b""
    while len(data) < size:
        part = disk.read(descriptor, size - len(data), start + len(data))
        if not part:
            break
        data = data + part if data else part
    return data


# The spool does not use app.files: a segment has a new name and replaces no file, it stays open for appending, and all
# calls go through a Disk, so that tests can make each of them fail and simulate a power loss.


def create_file(disk: Disk, path: Path, data: bytes) -> int:
    """Create a file, sync it and its directory, and return its descriptor; remove the file when that fails."""
    try:
        descriptor = disk.create(path)
    except FileExistsError:  # an earlier attempt failed and could not remove it
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
    """Make a directory and its missing parents, these with the usual permissions; sync their entries to the disk."""
    if path.parent != path and not path.parent.is_dir():
        make_directories(disk, path.parent, 0o777)
    harmless: type[OSError] = PermissionError  # a parent that may not be opened was not made here
    try:
        disk.make_directory(path, mode)
    except FileExistsError:
        harmless = OSError  # it was most likely synced when it was made, and the disk may be failing now
    with suppress(harmless):
        disk.sync_directory(path.parent)
