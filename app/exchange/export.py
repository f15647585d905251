"""`scorekeeper export`: labelled rows of a period as a CSV or Parquet file, streamed from PostgreSQL."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeAlias

import asyncpg
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.database.pool import ConnectionFailure, check_server, describe_connection_error
from app.errors import ScorekeeperError
from app.exchange.parquet import ParquetWriter, import_pyarrow
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
"""Columns of every export; those of probabilities and features follow, as `probabilities.CLASS`, `features.NAME`."""

FEATURE_TYPES: Mapping[str, type] = {"number": float, "integer": int, "text": str, "boolean": bool}
"""Types of columns by the kind of feature."""


class ExportError(ScorekeeperError):
    """The export cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Export:
    """Which rows to write where."""

    wanted: ExportFilter
    file_format: ExportFormat
    output: Path


class CsvWriter:
    """Writes rows with a line of names before them; an absent value is an empty cell."""

    def __init__(self, path: Path, columns: Mapping[str, type]) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Sequence[object]]) -> None:
        """Write rows."""
        self._writer.writerows(rows)

    def close(self) -> None:
        """Write what is left to write."""
        self._file.close()


Writer: TypeAlias = CsvWriter | ParquetWriter


async def run_export(export: Export, url: str, console: Console | None = None) -> int:
    """Write all rows as they are at one moment; the file appears when it is complete. Return 0."""
    console = console or Console()
    if export.file_format == "parquet":
        import_pyarrow()  # that it is missing should show before anything is read
    await check_server(url)
    try:
        connection = await asyncpg.connect(url, server_settings={"application_name": "scorekeeper export"})
    except ConnectionFailure as error:
        raise ExportError(describe_connection_error(url, error)) from error
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            versions = await count_by_version(connection, export.wanted)
            columns = name_columns(versions)
            with open_output(export, columns) as writer:
                await write_rows(connection, export, versions, columns, writer, console)
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise ExportError(f"PostgreSQL did not give the rows: {error}") from error
    finally:
        await connection.close()
    console.print(f"{export.output}: {sum(row['rows'] for row in versions):,} rows")
    return 0


def name_columns(versions: Sequence[asyncpg.Record]) -> dict[str, type]:
    """Return the columns: the fixed ones, then every class and feature of any of the versions."""
    probabilities = [name for row in versions for name in name_probabilities(row)]
    return {**FIXED_COLUMNS, **dict.fromkeys(probabilities, float), **list_features(versions)}


def list_features(versions: Sequence[asyncpg.Record]) -> dict[str, type]:
    """Return the columns of features; one that is of several types in several versions is written as text."""
    columns: dict[str, type] = {}
    for row in versions:
        for feature in msgspec.json.decode(row["inputs"]):
            kind = {"name": feature, "type": "number"} if isinstance(feature, str) else feature  # of an older release
            name, of = f"features.{kind['name']}", FEATURE_TYPES[kind["type"]]
            columns[name] = of if columns.get(name, of) is of else str
    return columns


def name_probabilities(version: asyncpg.Record) -> list[str]:
    """Return the columns of a version's probabilities, in their order in the log."""
    return [f"probabilities.{name}" for name in msgspec.json.decode(version["classes"])]


@contextmanager
def open_output(export: Export, columns: Mapping[str, type]) -> Iterator[Writer]:
    """Write to a file beside the output, which it replaces when all is written and on the disk."""
    temporary = export.output.with_name(f".{export.output.name}.{os.getpid()}")
    try:
        writer: Writer = (ParquetWriter if export.file_format == "parquet" else CsvWriter)(temporary, columns)
        try:
            yield writer
        finally:
            writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(export.output)
    except OSError as error:
        raise ExportError(f"{export.output} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


async def write_rows(
    connection: asyncpg.Connection,
    export: Export,
    versions: Sequence[asyncpg.Record],
    columns: Mapping[str, type],
    writer: Writer,
    console: Console,
) -> None:
    """Fetch and write the rows, some at a time."""
    others = dict(list(columns.items())[len(FIXED_COLUMNS) :])
    classes = {(row["model_name"], row["model_version"]): name_probabilities(row) for row in versions}
    bar_columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar_columns, console=console) as bar:
        task = bar.add_task("rows", total=sum(row["rows"] for row in versions))
        async for rows in stream_rows(connection, export.wanted):
            writer.write([make_cells(row, classes[row["model_name"], row["model_version"]], others) for row in rows])
            bar.advance(task, len(rows))


def make_cells(row: asyncpg.Record, classes: Sequence[str], others: Mapping[str, type]) -> list[object]:
    """Return the cells of a row; `classes` are the columns of its probabilities, `others` all that are not fixed."""
    values: dict[str, object] = dict(zip(classes, row["probabilities"], strict=True))
    values |= {f"features.{name}": value for name, value in msgspec.json.decode(row["features"]).items()}
    cells = [
        str(value) if of is str and (value := values.get(name)) is not None else values.get(name)
        for name, of in others.items()
    ]
    return [str(row["prediction_id"]), *list(row)[1 : len(FIXED_COLUMNS)], *cells]
