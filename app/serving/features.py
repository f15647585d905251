"""Features: which values each one allows, and how rows become one array per input of the graph."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import StartupError
from app.serving.metadata import Metadata, read_names

Scalar = bool | int | float | str | None
"""A single value of JSON; None is a missing one."""

Value = Scalar | list[Scalar]
"""A feature's value in a request and in the log; a list has the tokens of a text."""

FeatureKind = Literal["number", "integer", "text", "boolean", "integers"]

FEATURE_TEXT_LIMIT = 10_000
"""Most characters of a text feature, so that a row of the log stays small."""


TOKEN_LIMIT = 10_000
"""Most tokens of a feature."""


@dataclass(frozen=True, slots=True)
class ElementType:
    """The type of a tensor's elements: `datatype` is its name in the Open Inference Protocol.

    `low` and `high` are the limits of numbers; texts and booleans have none.
    """

    kind: FeatureKind
    datatype: str
    dtype: type[np.generic]
    python_types: frozenset[type]
    low: float = 0
    high: float = 0


NUMBER_TYPES = frozenset({int, float})
"""Python types of JSON numbers; 3.0 is allowed for an integer. bool is not among them, although it is an int."""


def _floats(datatype: str, dtype: type[np.floating[Any]]) -> ElementType:
    return ElementType("number", datatype, dtype, NUMBER_TYPES, float(np.finfo(dtype).min), float(np.finfo(dtype).max))


def _integers(datatype: str, dtype: type[np.signedinteger[Any]]) -> ElementType:
    return ElementType("integer", datatype, dtype, NUMBER_TYPES, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


ELEMENT_TYPES = {
    "tensor(float)": _floats("FP32", np.float32),
    "tensor(double)": _floats("FP64", np.float64),
    "tensor(float16)": _floats("FP16", np.float16),
    "tensor(int64)": _integers("INT64", np.int64),
    "tensor(int32)": _integers("INT32", np.int32),
    "tensor(string)": ElementType("text", "BYTES", np.object_, frozenset({str})),
    "tensor(bool)": ElementType("boolean", "BOOL", np.bool_, frozenset({bool})),
}
"""The supported types of inputs, by their ONNX names."""


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
        """The kind of JSON value."""
        return self.type.kind

    def find_fault(self, value: Value) -> tuple[str, str] | None:
        """Return the code and text of what is wrong with a JSON value; None when it can be scored and stored."""
        element = self.type
        if type(value) not in element.python_types:
            if value is not None:
                return "wrong_type", self._describe_allowed()
            return (
                None if self.missing_allowed else ("missing_value", f"null is not allowed, {self._describe_allowed()}")
            )
        if value is None or isinstance(value, bool):
            return None
        if isinstance(value, str | list):
            return _find_text_fault(value) if isinstance(value, str) else _find_token_fault(value, element)
        if not element.low <= value <= element.high:
            return "out_of_range", f"the number does not fit in {element.dtype.__name__}"
        is_fraction = element.kind == "integer" and isinstance(value, float) and not value.is_integer()
        return ("wrong_type", self._describe_allowed()) if is_fraction else None

    def _describe_allowed(self) -> str:
        """Say what is allowed, with an example."""
        missing = " or null" if self.missing_allowed else ""
        return f"expected {self.kind}{missing}, for example {KIND_EXAMPLES[self.kind]}"


KIND_EXAMPLES: dict[FeatureKind, str] = {
    "number": "1.5",
    "integer": "3",
    "text": '"abc"',
    "boolean": "true",
    "integers": "[101, 2054, 102]",
}


def _find_text_fault(value: str) -> tuple[str, str] | None:
    if "\x00" in value:
        return "not_storable", "text with a NUL character"
    return ("out_of_range", f"more than {FEATURE_TEXT_LIMIT} characters") if len(value) > FEATURE_TEXT_LIMIT else None


def _find_token_fault(tokens: Sequence[Scalar], element: ElementType) -> tuple[str, str] | None:
    if not 1 <= len(tokens) <= TOKEN_LIMIT:
        return "out_of_range", f"{len(tokens)} integers, allowed are 1 to {TOKEN_LIMIT}"
    for at, token in enumerate(tokens):
        if not isinstance(token, int) or isinstance(token, bool):
            return "wrong_type", f"expected integers, for example {KIND_EXAMPLES['integers']}; element {at} is none"
        if not element.low <= token <= element.high:
            return "out_of_range", f"element {at} does not fit in {element.dtype.__name__}"
    return None


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input of the graph: features `start` to `stop` of each row; a vector has one feature and one dimension.

    A sequence has one feature, whose tokens are the second dimension.
    """

    name: str
    type: ElementType
    start: int
    stop: int
    is_vector: bool
    missing_text: str | None = None
    """The text that stands for a missing one; None: texts may not be missing."""
    is_sequence: bool = False
    dimension: str = ""
    """The graph's name of the number of tokens: sequences with the same name have the same length."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, with -1 for the number of rows and of tokens."""
        if self.is_sequence:
            return (-1, -1)
        return (-1,) if self.is_vector else (-1, self.stop - self.start)


def make_arrays(inputs: Sequence[ModelInput], rows: Sequence[Sequence[Value]]) -> list[NDArray[Any]]:
    """Make one array per input from checked rows, values in the features' order; a missing value becomes NaN.

    Rows with sequences must have sequences of the same lengths.
    """
    if len(inputs) == 1 and not inputs[0].is_sequence:
        (only,) = inputs
        return [_shape(np.array(rows, dtype=only.type.dtype), only)]
    columns = list(zip(*rows, strict=True))
    return [_make_array(one, columns) for one in inputs]


def _make_array(model_input: ModelInput, columns: Sequence[Sequence[Value]]) -> NDArray[Any]:
    if model_input.is_sequence:
        return np.array(columns[model_input.start], dtype=model_input.type.dtype)
    wanted = columns[model_input.start : model_input.stop]
    return _shape(np.array(wanted, dtype=model_input.type.dtype).T, model_input)


def group_by_lengths(rows: Sequence[Sequence[Value]]) -> list[list[int]]:
    """Return the indices of rows in groups of which one array can be made: their sequences have the same lengths."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        lengths = tuple(len(value) for value in row if isinstance(value, list))
        groups.setdefault(lengths, []).append(index)
    return list(groups.values())


def _shape(array: NDArray[Any], model_input: ModelInput) -> NDArray[Any]:
    if model_input.missing_text is not None:
        array[array == None] = model_input.missing_text  # noqa: E711 - element by element
    return array.reshape(-1) if model_input.is_vector else np.ascontiguousarray(array)


def read_inputs(
    tensors: Sequence[Tensor], metadata: Metadata, *, missing_allowed: bool
) -> list[tuple[ModelInput, list[Feature]]]:
    """Read the inputs and their features; raise StartupError with what was found and what to do if not supported."""
    for tensor in tensors:
        _check_input(tensor, tensors)
    names = [str(name) for name in read_names(metadata, "feature_names")] if "feature_names" in metadata else None
    sequences = {tensor.name for tensor in tensors if names is None and _is_sequence(tensor)}
    widths = _read_widths(tensors, names, sequences)
    names = names if names is not None else _name_features(tensors, widths)
    if not widths or min(widths) < 1:
        raise StartupError(f"there are no features: inputs are {show(tensors)}")
    if len(set(names)) < len(names):
        raise StartupError('there are two features with the same name: name each in metadata "feature_names"')
    if len(names) != sum(widths):
        raise StartupError(f'metadata "feature_names" has {len(names)} names for {sum(widths)} features')
    inputs, start = [], 0
    for tensor, width in zip(tensors, widths, strict=True):
        element = ELEMENT_TYPES[tensor.type]
        is_sequence = tensor.name in sequences
        if is_sequence:
            element = replace(element, kind="integers", python_types=frozenset({list}))
        missing_text = metadata.get("missing_text") if missing_allowed and element.kind == "text" else None
        missing = (missing_allowed and element.kind == "number") or missing_text is not None
        features = [Feature(name, element, missing) for name in names[start : start + width]]
        is_vector = len(tensor.shape) == 1
        dimension = str(tensor.shape[1] or "") if is_sequence else ""
        place = (start, start + width)
        model_input = ModelInput(tensor.name, element, *place, is_vector, missing_text, is_sequence, dimension)
        inputs.append((model_input, features))
        start += width
    _check_missing(inputs, metadata, missing_allowed=missing_allowed)
    return inputs


def _check_missing(
    inputs: Sequence[tuple[ModelInput, list[Feature]]], metadata: Metadata, *, missing_allowed: bool
) -> None:
    """Raise StartupError when the metadata about missing values cannot have an effect."""
    if "missing_text" in metadata and not (missing_allowed and any(one.missing_text is not None for one, _ in inputs)):
        raise StartupError('metadata "missing_text" needs "missing_values": allowed, and an input of texts')
    if missing_allowed and not any(feature.missing_allowed for _, features in inputs for feature in features):
        raise StartupError(
            'metadata "missing_values" is allowed, but no input has floats: only floats can be missing, and texts with '
            'metadata "missing_text"'
        )


def _check_input(tensor: Tensor, tensors: Sequence[Tensor]) -> None:
    if tensor.type not in ELEMENT_TYPES or len(tensor.shape) not in (1, 2):
        raise StartupError(
            f"inputs are {show(tensors)}, supported are tensors of shape [N, features], [N, 1] or [N] of "
            f"{', '.join(ELEMENT_TYPES)}: put reshaping and casting into the graph"
        )
    batch = tensor.shape[0]
    if isinstance(batch, int) and batch != 1:
        raise StartupError(
            f"inputs are {show(tensors)}, with a fixed number of rows: export with a free first dimension"
        )


def _is_sequence(tensor: Tensor) -> bool:
    """Return whether an input takes the tokens of a text, as many as there are: integers of a free second dimension."""
    return (
        ELEMENT_TYPES[tensor.type].kind == "integer" and len(tensor.shape) == 2 and not isinstance(tensor.shape[1], int)
    )


def _read_widths(tensors: Sequence[Tensor], names: Sequence[str] | None, sequences: Collection[str]) -> list[int]:
    """Return the number of features of each input; one input of unknown width gets the names that are left over."""
    widths = [1 if len(tensor.shape) == 1 or tensor.name in sequences else tensor.shape[1] for tensor in tensors]
    known = [width for width in widths if isinstance(width, int)]
    if len(known) < len(widths) - 1:
        raise StartupError(f"inputs are {show(tensors)}: export with a fixed number of features in all but one of them")
    if len(known) < len(widths) and names is None:
        raise StartupError('the number of features is not in the graph: add metadata "feature_names"')
    left = len(names or []) - sum(known)
    return [width if isinstance(width, int) else left for width in widths]


def _name_features(tensors: Sequence[Tensor], widths: Sequence[int]) -> list[str]:
    """Name the features: of one matrix f0, f1 ...; of several inputs INPUT_0, INPUT_1 ..., or INPUT if it has one."""
    names = []
    for tensor, width in zip(tensors, widths, strict=True):
        stem = "f" if len(tensors) == 1 else f"{tensor.name}_"
        names += [tensor.name] if width == 1 else [f"{stem}{index}" for index in range(width)]
    return names


def show(tensors: Sequence[Tensor]) -> str:
    """Describe tensors in a text for the operator."""
    return ", ".join(f"{tensor.name}: {tensor.type}{list(tensor.shape)}" for tensor in tensors) or "none"
