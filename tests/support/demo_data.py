"""The bundled demo's files."""

import csv
import gzip
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.processes import ROOT

DEMO = ROOT / "demo"
MODEL = DEMO / "models" / "car-loan" / "1" / "model.onnx"
FEATURES = ["car_value", "debt_to_income_ratio", "loan_length", "driver_tenure", "size_of_downpayment"]
Array = npt.NDArray[Any]


def read_header(name: str) -> list[str]:
    with gzip.open(DEMO / "data" / name, "rt", encoding="utf-8") as lines:
        return next(csv.reader(lines))


def read_columns(name: str, *columns: str, dtype: npt.DTypeLike = np.float32) -> Array:
    header = read_header(name)
    places = [header.index(column) for column in columns]
    return np.loadtxt(DEMO / "data" / name, delimiter=",", skiprows=1, usecols=places, dtype=dtype)
