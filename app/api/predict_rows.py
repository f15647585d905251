"""Check the feature rows of a request: return their values in the model's order, or raise all their faults."""

from collections.abc import Callable, Mapping, Sequence

from app.errors import Fault, InvalidRequestError, invalid
from app.serving.features import NUMBER_TYPES, Feature, Value
from app.serving.signature import Signature
from app.web.body import Row, escape_step

SHOWN_NAMES = 20
"""Most names of features in one text; GET /models has all."""

Pointers = Callable[[], Sequence[str]]
"""Returns the JSON pointer of each row; called only when rows are refused."""


def read_features(rows: Sequence[Row], signature: Signature, pointers: Pointers) -> list[list[Value]]:
    """Return the rows' values, all valid and in the model's order; raise 422 with all faults of all rows."""
    names, width = signature.feature_names, len(signature.feature_names)
    ordered: list[list[Value]] = []
    for row in rows:
        if isinstance(row, dict):
            if len(row) != width or not row.keys() >= signature.feature_set:
                raise _find_faults(rows, signature, pointers)
            values = [row[name] for name in names]
        else:
            values = row
        if len(values) != width or not _are_allowed(values, signature):
            raise _find_faults(rows, signature, pointers)
        ordered.append(values)
    if signature.has_sequences:
        _check_lengths(ordered, signature, pointers)
    return ordered if signature.number_limit is not None else _spell_integers(ordered, signature)


def describe_row_limit(rows: int, signature: Signature) -> str:
    """Say that a request has more rows than this model allows, and why it allows so few."""
    return (
        f"{rows} rows, this model allows 1 to {signature.max_rows}, because a row has {len(signature.features)} "
        f"features and {len(signature.classes)} classes"
    )


def _are_allowed(values: list[Value], signature: Signature) -> bool:
    limit = signature.number_limit
    if limit is not None and NUMBER_TYPES.issuperset(map(type, values)):
        return min(values) >= -limit and max(values) <= limit  # type: ignore[type-var, operator]
    return all(feature.find_fault(value) is None for feature, value in zip(signature.features, values, strict=True))


def _spell_integers(rows: list[list[Value]], signature: Signature) -> list[list[Value]]:
    """Turn the values of integer features into ints, also where the client wrote 3.0; return the same rows."""
    for index, feature in enumerate(signature.features):
        if feature.kind == "integer":
            for values in rows:
                value = values[index]
                values[index] = int(value) if isinstance(value, float) else value
    return rows


def _check_lengths(rows: Sequence[Sequence[Value]], signature: Signature, pointers: Pointers) -> None:
    """Raise 422 for rows whose tokens have not the same length where the graph wants it."""
    faults = []
    for index, row in enumerate(rows):
        lengths: dict[str, tuple[str, int]] = {}
        for one in signature.inputs:
            if isinstance(tokens := row[one.start], list):
                name, length = lengths.setdefault(one.dimension, (one.name, len(tokens)))
                if length != len(tokens):
                    detail = f"{len(tokens)} integers in {one.name!r}, {length} in {name!r}"
                    faults.append(Fault(pointers()[index], "wrong_length", detail))
    if faults:
        raise invalid(*faults)


def _find_faults(rows: Sequence[Row], signature: Signature, pointers: Pointers) -> InvalidRequestError:
    """Return the error with all faults of rows that are refused."""
    by_name = {feature.name: feature for feature in signature.features}
    faults: list[Fault] = []
    for row, pointer in zip(rows, pointers(), strict=True):
        if isinstance(row, dict):
            faults += _find_name_faults(row, by_name, pointer)
            faults += _find_value_faults([(key, value, by_name.get(key)) for key, value in row.items()], pointer)
            continue
        if len(row) != len(signature.features):
            expected = len(signature.features)
            faults.append(Fault(pointer, "wrong_length", f"{len(row)} values for {expected} features"))
        values = zip(row, signature.features, strict=False)
        faults += _find_value_faults([(str(at), value, feature) for at, (value, feature) in enumerate(values)], pointer)
    return invalid(*faults)


def _find_name_faults(row: Mapping[str, object], by_name: Mapping[str, Feature], pointer: str) -> list[Fault]:
    missing = [
        Fault(pointer, "missing_feature", f"feature {name!r} is missing{'; null is allowed' * feature.missing_allowed}")
        for name, feature in by_name.items()
        if name not in row
    ]
    more = f" and {len(by_name) - SHOWN_NAMES} more" if len(by_name) > SHOWN_NAMES else ""
    detail = f"no such feature; the features are {', '.join(list(by_name)[:SHOWN_NAMES])}{more}"
    unknown = [Fault(f"{pointer}/{escape_step(key)}", "unknown_feature", detail) for key in row if key not in by_name]
    return missing + unknown


def _find_value_faults(values: Sequence[tuple[str, Value, Feature | None]], pointer: str) -> list[Fault]:
    return [
        Fault(f"{pointer}/{escape_step(key)}", *fault)
        for key, value, feature in values
        if feature is not None and (fault := feature.find_fault(value))
    ]
