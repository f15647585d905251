"""Make the recorded rows in demo/data/ from NannyML's wheel: ``python demo/prepare.py WHEEL_OR_UNPACKED_FOLDER``."""

import argparse
import csv
import gzip
import io
import zipfile
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np

DEMO = Path(__file__).resolve().parent

SOURCE = "nannyml/datasets/data/synthetic_car_loan_{}.csv"
LICENSE_SOURCE = "nannyml-0.13.1.dist-info/LICENSE"

FEATURES = ("car_value", "debt_to_income_ratio", "loan_length", "driver_tenure", "size_of_downpayment")
"""The numeric columns, in the order of the model's features."""


def main() -> None:
    """Read the arguments and make the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="nannyml-0.13.1-py3-none-any.whl, or the folder it is unpacked in")
    parser.add_argument("--output", type=Path, default=DEMO, help="folder to write to (default: that of the script)")
    arguments = parser.parse_args()
    if arguments.wheel.is_dir():
        prepare(arguments.wheel, arguments.output)
    else:
        with zipfile.ZipFile(arguments.wheel) as archive:
            prepare(zipfile.Path(archive), arguments.output)


def prepare(wheel: Traversable, output: Path) -> None:
    """Write the three data files and NannyML's licence from an open wheel to ``output``."""
    (output / "data").mkdir(parents=True, exist_ok=True)
    for name, columns in (
        ("reference", (*FEATURES, "repaid")),
        ("analysis", ("id", "timestamp", *FEATURES)),
        ("analysis_target", ("id", "repaid")),
    ):
        rows = read_rows(wheel.joinpath(SOURCE.format(name)), columns)
        write_csv(output / "data" / f"{name}.csv.gz", columns, rows)
    (output / "LICENSE-nannyml").write_bytes(wheel.joinpath(LICENSE_SOURCE).read_bytes())


def read_rows(source: Traversable, columns: Iterable[str]) -> Iterator[list[str]]:
    """Yield these columns of one CSV file, every number in its shortest form."""
    with source.open("r", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            yield [row[column] if column == "timestamp" else shorten(row[column]) for column in columns]


def shorten(number: str) -> str:
    """Return the shortest decimal with the same float32 as ``number``: "40%" is 40, "1.0" is 1.

    The model takes float32, so it would never see the digits that are dropped here.
    """
    return str(np.float32(number.removesuffix("%"))).removesuffix(".0")


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Write a gzipped CSV file whose bytes depend only on its rows: no name and no time in the gzip header."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    with path.open("wb") as raw, gzip.GzipFile("", "wb", compresslevel=9, fileobj=raw, mtime=0) as packed:
        packed.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
