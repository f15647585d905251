"""The progress of an import, in a small file that is replaced after each batch and survives a crash at any time."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from app.errors import ScorekeeperError
from app.files import replace_file

MOST_REASONS = 20
"""Most reasons that are counted by themselves: some name a place in the row."""


class CheckpointError(ScorekeeperError):
    """The import cannot start as asked; the message says why, and what to do."""


class Checkpoint(msgspec.Struct):
    """The progress of an import.

    `about` identifies the import. `began_at` stays the same in all its runs: it dates labels without a time, so that
    labels that are sent again are exact repetitions. `rows` counts the rows read, sent or not, `reasons` those
    that were not taken.
    """

    about: str
    began_at: datetime
    rows: int = 0
    empty: int = 0
    malformed: int = 0
    malformed_bytes: int = 0
    rejected_bytes: int = 0
    reasons: dict[str, int] = {}
    counts: dict[str, int] = {}
    is_finished: bool = False

    def count_reasons(self, reasons: Iterable[str]) -> None:
        """Count rows by the reason why they were not taken; those of rare reasons together."""
        for reason in reasons:
            known = reason in self.reasons or len(self.reasons) < MOST_REASONS
            name = reason if known else "for other reasons"
            self.reasons[name] = self.reasons.get(name, 0) + 1


def find_checkpoint(path: Path, about: str, *, restart: bool) -> Checkpoint:
    """Return where to continue: after the last batch of the same import, else at the first row.

    Raises CheckpointError when the file belongs to another import that is not finished.
    """
    known = _read(path)
    if known is None or (known.is_finished and known.about != about and not restart):
        return Checkpoint(about, datetime.now(UTC))
    if restart:
        return Checkpoint(about, known.began_at)
    if known.about != about:
        raise CheckpointError(
            f"{path} belongs to an import that is not finished, and the file, the server or the options have changed "
            "since: use --restart to begin at the first row again with the same times of observation, or remove that "
            "file to begin a new import"
        )
    return known


def _read(path: Path) -> Checkpoint | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"the state of the import in {path} cannot be read: {error}") from error


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file, and sync it to the disk."""
    try:
        with replace_file(path) as file:
            file.write(msgspec.json.encode(checkpoint))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}; use --state for another place") from error
