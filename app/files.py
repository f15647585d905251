"""Replace a file all or nothing: readers see the old content or the new one, also after the power has failed."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path` at exit, when its content is on the disk; its directory exists.

    It has exactly the permissions `mode`, by default those of any new file. After an error nothing of it is left, and
    `path` is as it was, or complete where only its name could not be synced. Blocks; raises OSError.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.new")  # two processes may be replacing the same file
    with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else 0o600)) as file:
        try:
            yield file
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())  # before it gets its name, which must never be that of half a file
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
    _sync_directory_if_possible(path.parent)


def write_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace a file by one with this content, as `replace_file` does; make its directory if it is not there."""
    make_directory(path.parent)
    with replace_file(path, mode=mode) as file:
        file.write(content)


def make_directory(path: Path) -> None:
    """Make a directory and its parents where they are missing, with their entries on the disk."""
    if path.exists():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory_if_possible(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory_if_possible(path: Path) -> None:
    """Sync a directory, unless we may not read it or its file system syncs none: there is no other way then."""
    try:
        sync_directory(path)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EINVAL, errno.ENOTSUP}:
            raise
