"""Feature rows of a request to one array per model input."""

from collections.abc import Mapping, Sequence

import numpy as np

from app.api.body import escape_step
from app.errors import Fault, InvalidRequestError, invalid
from app.serving.model import Float32
from app.serving.signature import Signature

Row = list[float | None] | dict[str, float | None]
"""One row as the client sent it: values in the model's order, or by feature name; None is a missing value."""

MAX_FLOAT32 = float(np.finfo(np.float32).max)


def read_features(
    rows: Sequence[Row], signature: Signature, pointers: Sequence[str]
) -> tuple[list[list[float | None]], Float32]:
    """Return the rows in the model's order and as float32 (n, n_features); raise 422 with all faults of all rows.

    `pointers` are the JSON pointers of the rows. A missing value is NaN in the array.
    """
    names = signature.feature_names
    try:
        ordered = [[row[name] for name in names] if isinstance(row, dict) else row for row in rows]
        with np.errstate(over="ignore"):  # what does not fit in float32 becomes infinite, and is refused below
            features = np.array(ordered, dtype=np.float64).astype(np.float32)
    except (KeyError, ValueError):  # a name is missing, or the rows are of different lengths
        raise find_faults(rows, signature, pointers) from None
    same_width = features.shape == (len(rows), len(names)) and all(len(row) == len(names) for row in rows)
    if not same_width or not _are_values_allowed(features, signature):
        raise find_faults(rows, signature, pointers)
    return ordered, features


def _are_values_allowed(features: Float32, signature: Signature) -> bool:
    if np.isfinite(features).all():
        return True
    return signature.missing_allowed and not np.isinf(features).any()


def find_faults(rows: Sequence[Row], signature: Signature, pointers: Sequence[str]) -> InvalidRequestError:
    """Say everything that is wrong with rows that were refused."""
    faults: list[Fault] = []
    for row, pointer in zip(rows, pointers, strict=True):
        if isinstance(row, dict):
            faults += _find_name_faults(row, signature.feature_names, pointer)
            values: Mapping[str, float | None] = row
        else:
            if len(row) != len(signature.feature_names):
                expected = len(signature.feature_names)
                faults.append(Fault(pointer, "wrong_length", f"{len(row)} values for {expected} features"))
            values = {str(index): value for index, value in enumerate(row)}
        for key, value in values.items():
            fault = _find_value_fault(value, signature.missing_allowed)
            if fault:
                faults.append(Fault(f"{pointer}/{escape_step(key)}", *fault))
    return invalid(*faults)


def _find_name_faults(row: Mapping[str, object], names: Sequence[str], pointer: str) -> list[Fault]:
    missing = [Fault(pointer, "missing_feature", f"feature {name!r} is missing") for name in names if name not in row]
    unknown = [
        Fault(f"{pointer}/{escape_step(key)}", "unknown_feature", "no such feature") for key in row if key not in names
    ]
    return missing + unknown


def _find_value_fault(value: float | None, missing_allowed: bool) -> tuple[str, str] | None:
    if value is None:
        return None if missing_allowed else ("missing_value", "this model does not take missing values")
    if abs(value) > MAX_FLOAT32:
        return "out_of_range", "the number does not fit in float32"
    return None
