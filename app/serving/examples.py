"""Example rows: the metadata's, or made-up ones that a model may accept."""

from collections.abc import Sequence

from app.errors import StartupError
from app.serving.features import Feature, FeatureKind, Value
from app.serving.metadata import Metadata, read_entry
from app.serving.name_tables import Names

FILLERS: tuple[dict[FeatureKind, Value], ...] = (
    {"number": 0.0, "integer": 0, "text": "", "boolean": False, "integers": [1, 1, 1]},
    {"number": 1.0, "integer": 1, "text": "a", "boolean": True, "integers": [0]},
)


def read_examples(metadata: Metadata, features: Sequence[Feature], categories: Sequence[Names]) -> list[list[Value]]:
    """Return example rows: the metadata's, else made-up rows with categories that the graph knows."""
    if "example" not in metadata:
        return [_make_example(features, fillers, categories) for fillers in FILLERS]
    example = read_entry(metadata, "example")
    row = [example.get(feature.name) for feature in features] if isinstance(example, dict) else example
    if not isinstance(row, list) or len(row) != len(features):
        raise StartupError(
            f'metadata "example" is neither a JSON array of {len(features)} values nor an object by feature name'
        )
    for feature, value in zip(features, row, strict=True):
        if fault := feature.find_fault(value):
            raise StartupError(f'metadata "example": feature {feature.name!r}: {fault[1]}')
    return [row]


def _make_example(
    features: Sequence[Feature], fillers: dict[FeatureKind, Value], categories: Sequence[Names]
) -> list[Value]:
    """Fill a row; give each feature a category that its encoder knows, since an encoder may refuse other values."""
    row = [fillers[feature.kind] for feature in features]
    for kind, type_ in (("text", str), ("integer", int)):
        firsts = [names[0] for names in categories if isinstance(names[0], type_)]
        places = [index for index, feature in enumerate(features) if feature.kind == kind]
        for index, first in zip(places, firsts, strict=False):
            row[index] = first
    return row
