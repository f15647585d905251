"""Feature rows of a request to one array per model input."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from app.api.body import escape_step
from app.errors import Fault, InvalidRequestError, invalid
from app.serving.signature import Signature

Row = list[float | None] | dict[str, float | None]
"""One row as the client sent it: values in the model's order, or by feature name; None is a missing value."""

Pointers = Callable[[], Sequence[str]]
"""Names the JSON pointers of the rows; called only for rows that are refused."""

MAX_FLOAT32 = float(np.finfo(np.float32).max)


def read_features(rows: Sequence[Row], signature: Signature, pointers: Pointers) -> list[list[float | None]]:
    """Return the rows in the model's order, n_features finite float32 each; raise 422 with all faults of all rows."""
    names, width = signature.feature_names, len(signature.feature_names)
    ordered: list[list[float | None]] = []
    for row in rows:
        if isinstance(row, dict):
            if len(row) != width or not row.keys() >= signature.feature_set:
                raise find_faults(rows, signature, pointers)
            values = [row[name] for name in names]
        else:
            values = row
        if len(values) != width or not _are_allowed(values, signature):
            raise find_faults(rows, signature, pointers)
        ordered.append(values)
    return ordered


def _are_allowed(values: list[float | None], signature: Signature) -> bool:
    try:
        return min(values) >= -MAX_FLOAT32 and max(values) <= MAX_FLOAT32  # type: ignore[type-var, operator]
    except TypeError:  # there is a null among them
        return signature.missing_allowed and all(value is None or abs(value) <= MAX_FLOAT32 for value in values)


def find_faults(rows: Sequence[Row], signature: Signature, pointers: Pointers) -> InvalidRequestError:
    """Say everything that is wrong with rows that were refused."""
    faults: list[Fault] = []
    for row, pointer in zip(rows, pointers(), strict=True):
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
