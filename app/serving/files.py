"""Model files on disk: read once, and written so that nobody reads half of one."""

import os
import stat
import tempfile
from pathlib import Path

from app.errors import StartupError

MAX_BYTES = 2 * 1024**3 - 1
"""What a protocol buffer, and so an ONNX file, can have."""


def read_model_file(path: Path) -> bytes:
    """Return all of a file; raise StartupError for what cannot be a model, with a line that does not name it."""
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):  # reading would not end
            raise StartupError("cannot be read: not a regular file")
        if status.st_size > MAX_BYTES:
            raise StartupError(f"has {status.st_size:,} bytes, an ONNX file has at most {MAX_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise StartupError("is empty")
    return content


def write_model_file(path: Path, content: bytes) -> None:
    """Write a file, directories included, that is there as a whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # a server under another user reads it
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
