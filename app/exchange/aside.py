"""Rows that were not taken, each with its place and the reason, in a file of their own."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from app.errors import ScorekeeperError
from app.exchange.label_files import LabelRow


class AsideError(ScorekeeperError):
    """Rows cannot be put aside; the message says why."""


def append_rows(path: Path, length: int, rows: Sequence[tuple[LabelRow, str]]) -> int:
    """Write rows with their faults after the first `length` bytes, which an import has noted; return the new length.

    What follows these bytes is of a run that was killed, or of another import. The file is synced to the disk.
    """
    lines = [
        msgspec.json.encode({"place": row.place, "fault": fault, "row": row.values}, enc_hook=str) + b"\n"
        for row, fault in rows
    ]
    try:
        with path.open("ab") as file:
            file.seek(file.truncate(min(length, file.tell())))
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise AsideError(f"{path} cannot be written: {error}") from error


def clear_rows(path: Path, length: int) -> None:
    """Cut the file, if it exists, to its first `length` bytes; remove it when nothing is left."""
    if path.exists() and append_rows(path, length, []) == 0:
        path.unlink()
