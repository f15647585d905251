"""Parse the metadata entries of an ONNX file, which are all texts."""

import json
import math
from collections.abc import Mapping
from unicodedata import category

from app.errors import StartupError

NAME_LIMIT = 200
"""Most characters of a class or feature name: names are stored in rows and become values of metric labels."""

REFUSED_SIGNS = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Unicode categories that names may not have: control characters, halves of characters, ends of lines and paragraphs.

Spaces that do not break, joiners and marks of the direction of writing are part of names in many languages.
"""

Metadata = Mapping[str, str]

METADATA_KEYS = frozenset(
    {
        "feature_names",
        "classes",
        "positive_class",
        "decision_threshold",
        "missing_values",
        "output",
        "batching",
        "probability_output",
        "missing_text",
        "example",
        "training_f1",
    }
)
"""The entries that the server reads; docs/models.md explains them."""


def read_entry(metadata: Metadata, key: str) -> object:
    """Return the entry's JSON value."""
    try:
        value: object = json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise StartupError(f'metadata "{key}" is not JSON: {metadata[key][:80]!r}') from None
    return value


def read_names(metadata: Metadata, key: str) -> tuple[int | str, ...]:
    """Return a JSON array of class or feature names, all integers or all texts."""
    names = read_entry(metadata, key)
    if not isinstance(names, list) or not all(is_name(name) for name in names):
        raise StartupError(
            f'metadata "{key}" is not a JSON array of integers or of texts up to {NAME_LIMIT} characters, without '
            "control characters"
        )
    if len({type(name) for name in names}) > 1:
        raise StartupError(f'metadata "{key}" mixes integers and texts')
    return tuple(names)


def is_name(name: object) -> bool:
    """Return whether this can be the name of a class or feature."""
    if isinstance(name, str):
        return 0 < len(name) <= NAME_LIMIT and not any(category(sign) in REFUSED_SIGNS for sign in name)
    return isinstance(name, int) and not isinstance(name, bool) and abs(name) < 2**63


def read_number(metadata: Metadata, key: str) -> float | None:
    """Return the entry's finite number, None when there is no such entry."""
    if key not in metadata:
        return None
    try:
        value = float(metadata[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise StartupError(f'metadata "{key}" is {metadata[key]!r}, which is not a finite number')
    return value


def read_choice(metadata: Metadata, key: str, choices: tuple[str, ...]) -> str:
    """Return the entry, which must be one of `choices`; the first of them when there is no such entry."""
    value = metadata.get(key, choices[0])
    if value not in choices:
        raise StartupError(f'metadata "{key}" is {value!r}, allowed is {" or ".join(choices)}')
    return value
