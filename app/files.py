"""Replace a file atomically: readers see the old content or the new content, even after a power failure."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """Yield a new file; at exit, sync it to disk and rename it to `path`, whose directory must exist.

    The file gets exactly the permissions `mode`; None: those of any new file. After an error the new file is removed
    and `path` is unchanged; if only the sync of the directory failed, `path` has the new content. Blocks; raises
    OSError.
    """
    draft = path.with_name(f".{secrets.token_hex(8)}.new")  # two processes may be replacing the same file
    with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else 0o600)) as file:
        try:
            yield file
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())  # before the rename: `path` must never name half a file
            draft.replace(path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
    _sync_directory_if_possible(path.parent)


def write_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """Replace the content of a file as `replace_file` does; make its directory if it is missing."""
    make_directory(path.parent)
    with replace_file(path, mode=mode) as file:
        file.write(content)


def make_directory(path: Path) -> None:
    """Make a directory and its missing parents, and sync their entries to disk."""
    if path.exists():
        return
    make_directory(path.parent)
    path.mkdir(exist_ok=True)
    _sync_directory_if_possible(path.parent)


def sync_directory(path: Path) -> None:
    """Sync the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory_if_possible(path: Path) -> None:
    """Sync a directory; do nothing if it is not readable or its file system cannot sync directories."""
    try:
        sync_directory(path)
    except OSError as error:
        if error.errno not in {errno.EACCES, errno.EINVAL, errno.ENOTSUP}:
            raise
