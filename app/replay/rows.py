"""The plan of a replay, and its rows and labels from CSV files."""

import csv
import gzip
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.errors import ScorekeeperError


class ReplayError(ScorekeeperError):
    """The replay cannot continue; the message says why."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What to send, and where: `rows` rows from row `start` on, `rate` per second; labels for a share `label_share`."""

    url: str
    rows: int
    start: int
    rate: float
    label_delay_seconds: float
    label_share: float
    data: Path
    labels: Path


def load_rows(path: Path, start: int, count: int) -> list[dict[str, str]]:
    """Read `count` rows of a CSV file from row `start` on, fewer if the file has fewer."""
    rows = list(itertools.islice(_open_csv(path), start, start + count))
    if not rows:
        raise ReplayError(f"{path} has fewer than {start + 1} rows")
    return rows


def check_columns(replay: Replay, row: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ReplayError when the rows lack a feature that the model needs."""
    missing = set(names) - set(row)
    if missing:
        raise ReplayError(f"{replay.data} has no column {', '.join(sorted(missing))}, which the model needs")


def load_labels(path: Path) -> dict[str, str]:
    """Read {row id: label}: the first column is the id, the second the label."""
    return {values[0]: values[1] for values in (list(row.values()) for row in _open_csv(path))}


def _open_csv(path: Path) -> "csv.DictReader[str]":
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error
    return csv.DictReader(text.splitlines())
