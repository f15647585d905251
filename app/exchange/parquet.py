"""Read and write Parquet; the only module that imports pyarrow, which is an extra."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import ScorekeeperError

BATCH_ROWS = 5_000
"""Rows that are in memory at a time."""


class ParquetError(ScorekeeperError):
    """A Parquet file cannot be read or written; the message says why."""


def import_pyarrow() -> Any:
    """Import pyarrow with its Parquet module."""
    try:
        import pyarrow as pa  # noqa: PLC0415  # optional, and takes a second to import
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ParquetError("Parquet needs pyarrow: pip install pyarrow, or use CSV") from error
    return pa


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """Open a file for reading; yield a `pyarrow.parquet.ParquetFile`."""
    pa = import_pyarrow()
    try:
        file = pa.parquet.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ParquetError(f"{path} is not a Parquet file: {error}") from error
    with file:
        yield file


def read_parquet_rows(file: Any, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the rows with only these columns; times are cut to microseconds."""
    pa = import_pyarrow()
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns)):
        yield from _round_times(pa, pa.Table.from_batches([batch])).to_pylist()


def _round_times(pa: Any, table: Any) -> Any:
    """Convert all times to microseconds, the finest that Python has."""
    types = [pa.timestamp("us", of.tz) if pa.types.is_timestamp(of) else of for of in table.schema.types]
    return table.cast(pa.schema(list(zip(table.schema.names, types, strict=True))), safe=False)


class ParquetWriter:
    """Writes rows; `columns` is {name: type} with str, datetime, float, int or bool. `close` completes the file."""

    def __init__(self, file: BinaryIO, columns: Mapping[str, type]) -> None:
        pa = import_pyarrow()
        numbers = {float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
        types = {str: pa.string(), datetime: pa.timestamp("us", "UTC"), **numbers}
        self._schema = pa.schema([(name, types[of]) for name, of in columns.items()])
        self._writer = pa.parquet.ParquetWriter(file, self._schema)
        self._table = pa.table

    def write(self, rows: Sequence[Sequence[object]]) -> None:
        """Write rows as one row group."""
        values = zip(*rows, strict=True)
        columns = dict(zip(self._schema.names, map(list, values), strict=True))
        self._writer.write_table(self._table(columns, schema=self._schema))

    def close(self) -> None:
        """Write the footer of the Parquet file; the file stays open."""
        self._writer.close()
