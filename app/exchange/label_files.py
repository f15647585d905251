"""Read labels from CSV, NDJSON and Parquet files row by row, so that memory does not grow with the file."""

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec

from app.errors import ScorekeeperError
from app.exchange.parquet import open_parquet, read_parquet_rows

LabelFormat = Literal["csv", "ndjson", "parquet"]

LABEL_KEYS = ("prediction_id", "external_id")

FORMATS: Mapping[str, LabelFormat] = {
    ".csv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
}


class LabelFileError(ScorekeeperError):
    """The file cannot be read; the message says why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns. If neither key is named, both are read from the columns with their own names."""

    prediction_id: str | None = None
    external_id: str | None = None
    label: str = "label"
    observed_at: str | None = None

    def name_members(self) -> dict[str, str]:
        """Return the column of each member of POST /labels."""
        keys = {"prediction_id": self.prediction_id, "external_id": self.external_id}
        if not any(keys.values()):
            keys = {key: key for key in keys}
        members = {**keys, "label": self.label, "observed_at": self.observed_at or "observed_at"}
        return {member: name for member, name in members.items() if name is not None}


class LabelRow(NamedTuple):
    """A row: its place, and its values by column (None: empty cell), or the reason why it cannot be read."""

    place: str
    values: Mapping[str, object] | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """An open file: its rows, and how far it has been read (`read`, from 0 to `total`)."""

    rows: Iterator[LabelRow]
    total: int
    read: Callable[[], int]


def name_format(path: Path) -> LabelFormat:
    """Return the format by the extension, without `.gz`."""
    extension = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if extension.lower() not in FORMATS:
        raise LabelFileError(f"the name {path} does not end in {', '.join(FORMATS)}: give --format")
    return FORMATS[extension.lower()]


@contextmanager
def open_labels(path: Path, file_format: LabelFormat, columns: Columns) -> Iterator[LabelFile]:
    """Open a file and check its columns. Raises LabelFileError, also while its rows are read."""
    with ExitStack() as stack:
        with _say_why(path):
            if file_format == "parquet":
                file = _open_parquet_rows(stack.enter_context(open_parquet(path)), path, columns)
            else:
                raw = stack.enter_context(path.open("rb"))
                plain: gzip.GzipFile | io.BufferedReader = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
                if file_format == "csv":
                    text = stack.enter_context(io.TextIOWrapper(plain, "utf-8-sig", newline=""))
                    rows = _read_csv(text, path, columns)
                else:
                    rows = _read_lines(plain)
                file = LabelFile(_guard(rows, path), path.stat().st_size, raw.tell)
        yield file


@contextmanager
def _say_why(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise LabelFileError(f"{path} cannot be read: {error}") from error


def _guard(rows: Iterator[LabelRow], path: Path) -> Iterator[LabelRow]:
    with _say_why(path):
        yield from rows


def _open_parquet_rows(file: Any, path: Path, columns: Columns) -> LabelFile:
    names = file.schema_arrow.names
    _check_columns(names, path, columns)
    wanted = [name for name in dict.fromkeys(columns.name_members().values()) if name in names]
    done = 0

    def read() -> Iterator[LabelRow]:
        nonlocal done
        for values in read_parquet_rows(file, wanted):
            done += 1
            yield LabelRow(f"row {done}", values)

    return LabelFile(_guard(read(), path), file.metadata.num_rows, lambda: done)


def _read_csv(text: IO[str], path: Path, columns: Columns) -> Iterator[LabelRow]:
    reader = csv.reader(text, strict=True)
    names = next(reader, [])
    _check_columns(names, path, columns)

    def read() -> Iterator[LabelRow]:
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(names):
                yield LabelRow(f"line {line}", {name: cell or None for name, cell in zip(names, cells, strict=True)})
            elif cells:  # a blank line has no cells
                yield LabelRow(f"line {line}", None, f"{len(cells)} cells, but the first line has {len(names)}")
            line = reader.line_num + 1

    return read()


def _read_lines(plain: gzip.GzipFile | io.BufferedReader) -> Iterator[LabelRow]:
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for number, line in enumerate(plain, 1):
        if not line.strip():
            continue
        try:
            yield LabelRow(f"line {number}", decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield LabelRow(f"line {number}", None, f"not a JSON object: {error}")


def _check_columns(names: Sequence[str], path: Path, columns: Columns) -> None:
    """Raise LabelFileError when the key, the label or a column that was named is missing."""
    asked = (columns.prediction_id, columns.external_id, columns.label, columns.observed_at)
    missing = [name for name in asked if name is not None and name not in names]
    members = columns.name_members()
    if not any(members.get(key) in names for key in LABEL_KEYS) and not missing:
        missing = [" or ".join(LABEL_KEYS)]
    if missing:
        raise LabelFileError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}")
