"""How far an import has come: a small file that is replaced after each batch, and outlives a crash at any moment."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from app.errors import ScorekeeperError
from app.files import replace_file


class CheckpointError(ScorekeeperError):
    """The import cannot be begun as asked; the message says why, and what to do."""


class Checkpoint(msgspec.Struct):
    """What is done of an import.

    `about` tells it from other imports. `began_at` is kept through all its runs: it dates labels that have no time of
    their own, so that what is sent again is an exact repetition. `rows` are those read, sent or not.
    """

    about: str
    began_at: datetime
    rows: int = 0
    empty: int = 0
    malformed: int = 0
    malformed_bytes: int = 0
    counts: dict[str, int] = {}
    is_finished: bool = False


def find_checkpoint(path: Path, about: str, *, restart: bool) -> Checkpoint:
    """Return where to go on: after the last batch of the same import, else at the beginning.

    Raises CheckpointError when another import than this one has stopped halfway.
    """
    known = _read(path)
    if known is None or (known.is_finished and known.about != about and not restart):
        return Checkpoint(about, datetime.now(UTC))
    if restart:
        return Checkpoint(about, known.began_at)
    if known.about != about:
        raise CheckpointError(
            f"{path} is of an import that has stopped halfway, and the file, the server or the options have changed "
            "since: --restart begins at the first row again, observed as before; without that file it is a new import"
        )
    return known


def _read(path: Path) -> Checkpoint | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path} cannot be read as the state of an import: {error}") from error


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file by one that is on the disk."""
    try:
        with replace_file(path) as file:
            file.write(msgspec.json.encode(checkpoint))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}; --state names another place") from error
