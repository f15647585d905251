"""Features, the values of a row: what each may be, and how rows become one array per input of the graph."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import StartupError
from app.serving.graph import Names
from app.serving.metadata import Metadata, read_entry, read_names

Value = bool | int | float | str | None
"""What a feature may be in a request and in the log; None is a missing number."""

FeatureKind = Literal["number", "integer", "text", "boolean"]

FEATURE_TEXT_LIMIT = 10_000
"""Characters of a text feature: a row of the log stays small."""


@dataclass(frozen=True, slots=True)
class ElementType:
    """What a tensor holds: `datatype` is the Open Inference Protocol's name, `low` and `high` bound its numbers."""

    kind: FeatureKind
    datatype: str
    dtype: type[np.generic]
    python_types: frozenset[type]
    low: float = 0
    high: float = 0


NUMBER_TYPES = frozenset({int, float})
"""Types of JSON's numbers, 3.0 among the integers; that of booleans is another, although Python can compare them."""


def _floats(datatype: str, dtype: type[np.floating[Any]]) -> ElementType:
    return ElementType("number", datatype, dtype, NUMBER_TYPES, float(np.finfo(dtype).min), float(np.finfo(dtype).max))


def _integers(datatype: str, dtype: type[np.signedinteger[Any]]) -> ElementType:
    return ElementType("integer", datatype, dtype, NUMBER_TYPES, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


ELEMENT_TYPES = {
    "tensor(float)": _floats("FP32", np.float32),
    "tensor(double)": _floats("FP64", np.float64),
    "tensor(int64)": _integers("INT64", np.int64),
    "tensor(int32)": _integers("INT32", np.int32),
    "tensor(string)": ElementType("text", "BYTES", np.object_, frozenset({str})),
    "tensor(bool)": ElementType("boolean", "BOOL", np.bool_, frozenset({bool})),
}
"""The inputs that are understood, by ONNX's names."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output as the graph declares it; `shape` holds integers, names of free dimensions, or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """One value of a row."""

    name: str
    type: ElementType
    missing_allowed: bool

    @property
    def kind(self) -> FeatureKind:
        """What it is in JSON."""
        return self.type.kind

    def find_fault(self, value: Value) -> tuple[str, str] | None:
        """Return what is wrong with a value of JSON, as a code and in words; None: it may be scored and stored."""
        element = self.type
        if type(value) not in element.python_types:
            if value is not None:
                return "wrong_type", f"expected {element.kind}"
            return None if self.missing_allowed else ("missing_value", "this model does not take missing values")
        if value is None or isinstance(value, bool):
            return None
        if isinstance(value, str):
            return _find_text_fault(value)
        if not element.low <= value <= element.high:
            return "out_of_range", f"the number does not fit in {element.dtype.__name__}"
        is_fraction = element.kind == "integer" and isinstance(value, float) and not value.is_integer()
        return ("wrong_type", "expected integer") if is_fraction else None


def _find_text_fault(value: str) -> tuple[str, str] | None:
    if "\x00" in value:
        return "not_storable", "text with a NUL character"
    return ("out_of_range", f"more than {FEATURE_TEXT_LIMIT} characters") if len(value) > FEATURE_TEXT_LIMIT else None


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A tensor that the graph takes: of each row the features from `start` to `stop`, or one feature as a vector."""

    name: str
    type: ElementType
    start: int
    stop: int
    is_vector: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape for a batch of any size, which is -1."""
        return (-1,) if self.is_vector else (-1, self.stop - self.start)


def make_arrays(inputs: Sequence[ModelInput], rows: Sequence[Sequence[Value]]) -> list[NDArray[Any]]:
    """Make one array per input from checked rows in the features' order; a missing value becomes NaN."""
    if len(inputs) == 1:
        (only,) = inputs
        return [_shape(np.array(rows, dtype=only.type.dtype), only)]
    columns = list(zip(*rows, strict=True))
    return [_shape(np.array(columns[one.start : one.stop], dtype=one.type.dtype).T, one) for one in inputs]


def _shape(array: NDArray[Any], model_input: ModelInput) -> NDArray[Any]:
    return array.reshape(-1) if model_input.is_vector else np.ascontiguousarray(array)


def read_inputs(
    tensors: Sequence[Tensor], metadata: Metadata, *, missing_allowed: bool
) -> list[tuple[ModelInput, list[Feature]]]:
    """Understand the graph's inputs, or raise StartupError with what was found and what would help."""
    for tensor in tensors:
        _check_input(tensor, tensors)
    names = [str(name) for name in read_names(metadata, "feature_names")] if "feature_names" in metadata else None
    widths = _read_widths(tensors, names)
    names = names if names is not None else _name_features(tensors, widths)
    if not names or len(set(names)) < len(names):
        raise StartupError('"feature_names" are none, or name a feature twice: name each in the metadata')
    if len(names) != sum(widths):
        raise StartupError(f'metadata "feature_names" has {len(names)} names for {sum(widths)} features')
    inputs, start = [], 0
    for tensor, width in zip(tensors, widths, strict=True):
        element = ELEMENT_TYPES[tensor.type]
        missing = missing_allowed and element.kind == "number"
        features = [Feature(name, element, missing) for name in names[start : start + width]]
        inputs.append((ModelInput(tensor.name, element, start, start + width, len(tensor.shape) == 1), features))
        start += width
    if missing_allowed and not any(feature.missing_allowed for _, features in inputs for feature in features):
        raise StartupError('metadata "missing_values" is allowed, but no input is of floats: only these can be missing')
    return inputs


def _check_input(tensor: Tensor, tensors: Sequence[Tensor]) -> None:
    if tensor.type not in ELEMENT_TYPES or len(tensor.shape) not in (1, 2):
        raise StartupError(
            f"inputs are {show(tensors)}, supported are tensors of shape [N, features], [N, 1] or [N] of "
            f"{', '.join(ELEMENT_TYPES)}: put reshaping and casting into the graph"
        )
    batch = tensor.shape[0]
    if isinstance(batch, int) and batch != 1:
        raise StartupError(f"inputs are {show(tensors)}, of a fixed number of rows: export with a free first dimension")


def _read_widths(tensors: Sequence[Tensor], names: Sequence[str] | None) -> list[int]:
    """Return how many features each input holds; one that does not tell holds those names that are left."""
    widths = [1 if len(tensor.shape) == 1 else tensor.shape[1] for tensor in tensors]
    known = [width for width in widths if isinstance(width, int)]
    if len(known) < len(widths) - 1 or (len(known) < len(widths) and names is None):
        raise StartupError('the number of features is not in the graph, add metadata "feature_names"')
    left = len(names or []) - sum(known)
    return [width if isinstance(width, int) else left for width in widths]


def _name_features(tensors: Sequence[Tensor], widths: Sequence[int]) -> list[str]:
    """Name a column as its input, the features of one matrix f0, f1 ..., those of one among others with its name."""
    names = []
    for tensor, width in zip(tensors, widths, strict=True):
        stem = "f" if len(tensors) == 1 else f"{tensor.name}_"
        names += [tensor.name] if width == 1 else [f"{stem}{index}" for index in range(width)]
    return names


def show(tensors: Sequence[Tensor]) -> str:
    """Return tensors as a text for the operator."""
    return ", ".join(f"{tensor.name}: {tensor.type}{list(tensor.shape)}" for tensor in tensors) or "none"


FILLERS: tuple[dict[FeatureKind, Value], ...] = (
    {"number": 0.0, "integer": 0, "text": "", "boolean": False},
    {"number": 1.0, "integer": 1, "text": "a", "boolean": True},
)


def read_examples(metadata: Metadata, features: Sequence[Feature], categories: Sequence[Names]) -> list[list[Value]]:
    """Return rows that the model may take: the metadata's, else made-up ones with categories that the graph knows."""
    if "example" not in metadata:
        return [_make_example(features, fillers, categories) for fillers in FILLERS]
    example = read_entry(metadata, "example")
    row = [example.get(feature.name) for feature in features] if isinstance(example, dict) else example
    if not isinstance(row, list) or len(row) != len(features):
        raise StartupError(f'metadata "example" is not a JSON array of {len(features)} values, or an object by name')
    for feature, value in zip(features, row, strict=True):
        if fault := feature.find_fault(value):
            raise StartupError(f'metadata "example": feature {feature.name!r}: {fault[1]}')
    return [row]


def _make_example(
    features: Sequence[Feature], fillers: dict[FeatureKind, Value], categories: Sequence[Names]
) -> list[Value]:
    """Fill a row; an encoder's first category goes to the next feature of its type, since it may refuse any other."""
    row = [fillers[feature.kind] for feature in features]
    for kind, type_ in (("text", str), ("integer", int)):
        firsts = [names[0] for names in categories if isinstance(names[0], type_)]
        places = [index for index, feature in enumerate(features) if feature.kind == kind]
        for index, first in zip(places, firsts, strict=False):
            row[index] = first
    return row
