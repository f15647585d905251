"""`scorekeeper export`: write the labelled rows of a period to a CSV or Parquet file, streamed from PostgreSQL."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias

import asyncpg
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.database.connecting import connect
from app.database.pool import ConnectionFailure, check_server, describe_connection_error
from app.errors import ScorekeeperError
from app.exchange.parquet import ParquetWriter, import_pyarrow
from app.files import replace_file
from app.quality.export_queries import ExportFilter, count_by_version, stream_rows

ExportFormat = Literal["csv", "parquet"]

FIXED_COLUMNS: Mapping[str, type] = {
    "prediction_id": str,
    "created_at": datetime,
    "model": str,
    "model_version": str,
    "external_id": str,
    "prediction": str,
    "score": float,
    "label": str,
    "observed_at": datetime,
    "received_at": datetime,
}
"""Columns of every export; after them come `probabilities.CLASS` and `features.NAME`."""

FEATURE_TYPES: Mapping[str, type] = {"number": float, "integer": int, "text": str, "boolean": bool, "integers": str}
"""The type of a column by the kind of feature."""


class ExportError(ScorekeeperError):
    """The export has failed; the message says why."""


@dataclass(frozen=True, slots=True)
class Export:
    """Which rows to write, and to which file."""

    wanted: ExportFilter
    file_format: ExportFormat
    output: Path


class CsvWriter:
    """Writes rows after a line of column names; a missing value is an empty cell."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, type]) -> None:
        self._file = io.TextIOWrapper(file, encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Sequence[object]]) -> None:
        """Write rows."""
        self._writer.writerows(rows)

    def close(self) -> None:
        """Write what is still in the buffer; the file stays open."""
        self._file.detach()


Writer: TypeAlias = CsvWriter | ParquetWriter


async def run_export(export: Export, url: str, console: Console | None = None) -> int:
    """Write all rows from one snapshot; the file appears when it is complete. Return 0."""
    console = console or Console()
    if export.file_format == "parquet":
        import_pyarrow()  # fail before anything is read when it is missing
    await check_server(url)
    try:
        connection = await connect(url, "scorekeeper export")
    except ConnectionFailure as error:
        raise ExportError(describe_connection_error(url, error)) from error
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            versions = await count_by_version(connection, export.wanted)
            columns = _name_columns(versions)
            with open_output(export, columns) as writer:
                await _write_rows(connection, export, versions, columns, writer, console)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ExportError(f"the rows could not be read from PostgreSQL: {error}") from error
    finally:
        await connection.close()
    console.print(f"{export.output}: {sum(row['rows'] for row in versions):,} rows")
    return 0


def _name_columns(versions: Sequence[asyncpg.Record]) -> dict[str, type]:
    """Return the columns: the fixed ones, then all classes and features of the versions."""
    probabilities = [name for row in versions for name in _name_probabilities(row)]
    return {**FIXED_COLUMNS, **dict.fromkeys(probabilities, float), **_list_features(versions)}


def _list_features(versions: Sequence[asyncpg.Record]) -> dict[str, type]:
    """Return the columns of features; a feature that has other types in other versions is written as text."""
    columns: dict[str, type] = {}
    for row in versions:
        for feature in msgspec.json.decode(row["inputs"]):
            # An older release stored only the names of features, which were all numbers.
            kind = {"name": feature, "type": "number"} if isinstance(feature, str) else feature
            name, of = f"features.{kind['name']}", FEATURE_TYPES[kind["type"]]
            columns[name] = of if columns.get(name, of) is of else str
    return columns


def _name_probabilities(version: asyncpg.Record) -> list[str]:
    """Return the columns of a version's probabilities, in the order of the log."""
    return [f"probabilities.{name}" for name in msgspec.json.decode(version["classes"])]


@contextmanager
def open_output(export: Export, columns: Mapping[str, type]) -> Iterator[Writer]:
    """Open a writer to a temporary file, which replaces the output when it is complete and synced to the disk."""
    try:
        with replace_file(export.output) as file:
            writer: Writer = (ParquetWriter if export.file_format == "parquet" else CsvWriter)(file, columns)
            try:
                yield writer
            finally:
                writer.close()
    except OSError as error:
        raise ExportError(f"{export.output} cannot be written: {error}") from error


async def _write_rows(
    connection: asyncpg.Connection,
    export: Export,
    versions: Sequence[asyncpg.Record],
    columns: Mapping[str, type],
    writer: Writer,
    console: Console,
) -> None:
    """Fetch and write the rows in small parts."""
    others = dict(list(columns.items())[len(FIXED_COLUMNS) :])
    classes = {(row["model_name"], row["model_version"]): _name_probabilities(row) for row in versions}
    bar_columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar_columns, console=console) as bar:
        task = bar.add_task("rows", total=sum(row["rows"] for row in versions))
        async for rows in stream_rows(connection, export.wanted):
            writer.write([_list_cells(row, classes[row["model_name"], row["model_version"]], others) for row in rows])
            bar.advance(task, len(rows))


def _list_cells(row: asyncpg.Record, classes: Sequence[str], others: Mapping[str, type]) -> list[object]:
    """Return the cells of a row; `classes` are the columns of its probabilities, `others` all but the fixed columns."""
    values: dict[str, object] = dict(zip(classes, row["probabilities"], strict=True))
    values |= {f"features.{name}": value for name, value in msgspec.json.decode(row["features"]).items()}
    cells = [
        str(value) if of is str and (value := values.get(name)) is not None else values.get(name)
        for name, of in others.items()
    ]
    return [str(row["prediction_id"]), *list(row)[1 : len(FIXED_COLUMNS)], *cells]
