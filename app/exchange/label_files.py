"""Read labels from CSV, NDJSON and Parquet files row by row, so that memory does not grow with the file."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec

from app.errors import ScorekeeperError
from app.exchange.parquet import open_parquet, read_parquet_rows
from app.exchange.text_files import DELIMITERS, PlainFile, TextForm, find_encoding, read_byte_lines

LabelFormat = Literal["csv", "ndjson", "parquet"]

LABEL_KEYS = ("prediction_id", "external_id")

FORMATS: Mapping[str, LabelFormat] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".parquet": "parquet",
}


NOTHING = ("nan", "nat")
"""What pandas may write for an empty label or time."""


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
def open_labels(
    path: Path, file_format: LabelFormat, columns: Columns, form: TextForm | None = None
) -> Iterator[LabelFile]:
    """Open a file and check its columns. Raises LabelFileError, also while its rows are read."""
    form = form or TextForm()
    with ExitStack() as stack:
        with _say_why(path):
            if file_format == "parquet":
                file = _open_parquet_rows(stack.enter_context(open_parquet(path)), path, columns)
            else:
                raw = stack.enter_context(path.open("rb"))
                plain: PlainFile = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
                encoding = form.encoding or find_encoding(plain)
                if file_format == "csv":
                    text = stack.enter_context(io.TextIOWrapper(plain, encoding, newline=""))
                    rows = _read_csv(text, path, columns, form.delimiter)
                else:
                    rows = _read_lines(read_byte_lines(plain, encoding))
                file = LabelFile(_guard(rows, path), path.stat().st_size, raw.tell)
        yield file


@contextmanager
def _say_why(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:
        raise LabelFileError(f"{path} cannot be read: {error}; give its --encoding, such as cp1252") from error
    except (OSError, EOFError, zlib.error, csv.Error) as error:
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


def _read_csv(text: IO[str], path: Path, columns: Columns, delimiter: str | None) -> Iterator[LabelRow]:
    first = text.readline()
    if delimiter is None:
        delimiter = next((one for one in DELIMITERS if _has_columns(_split(first, one), columns)), ",")
    reader = csv.reader(chain([first], text), strict=True, delimiter=delimiter)
    names = next(reader, [])
    _check_columns(names, path, columns)
    may_be_nan = [at for at, name in enumerate(names) if name in (columns.label, columns.name_members()["observed_at"])]

    def read() -> Iterator[LabelRow]:
        line = reader.line_num + 1
        for cells in reader:
            if len(cells) == len(names):
                for at in may_be_nan:
                    cells[at] = "" if cells[at].casefold() in NOTHING else cells[at]
                yield LabelRow(f"line {line}", {name: cell or None for name, cell in zip(names, cells, strict=True)})
            elif cells:  # a blank line has no cells
                yield LabelRow(f"line {line}", None, f"{len(cells)} cells, but the first line has {len(names)}")
            line = reader.line_num + 1

    return read()


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def _read_lines(lines: Iterator[bytes]) -> Iterator[LabelRow]:
    decode = msgspec.json.Decoder(dict[str, object]).decode
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = decode(line)
            json.loads(line, object_pairs_hook=_refuse_repeated)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield LabelRow(f"line {number}", None, f"not a JSON object: {error}")
        except _RepeatedNameError as error:
            yield LabelRow(f"line {number}", None, f"{error} is there more than once")
        else:
            yield LabelRow(f"line {number}", values)


class _RepeatedNameError(Exception):
    """A JSON object has a member twice; the message is its name."""


def _refuse_repeated(members: list[tuple[str, object]]) -> None:
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        raise _RepeatedNameError(next(name for at, name in enumerate(names) if name in names[:at]))


def _has_columns(names: Sequence[str], columns: Columns) -> bool:
    return not _find_missing(names, columns)


def _check_columns(names: Sequence[str], path: Path, columns: Columns) -> None:
    """Raise LabelFileError when the key, the label or a column that was named is missing, or one is there twice."""
    if missing := _find_missing(names, columns):
        raise LabelFileError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names) or 'none'}")
    repeated = [name for name in dict.fromkeys(columns.name_members().values()) if names.count(name) > 1]
    if repeated:
        raise LabelFileError(f"{path} has the column {', '.join(repeated)} more than once: which one counts?")


def _find_missing(names: Sequence[str], columns: Columns) -> list[str]:
    asked = (columns.prediction_id, columns.external_id, columns.label, columns.observed_at)
    missing = [name for name in asked if name is not None and name not in names]
    members = columns.name_members()
    if not any(members.get(key) in names for key in LABEL_KEYS) and not missing:
        missing = [" or ".join(LABEL_KEYS)]
    return missing
