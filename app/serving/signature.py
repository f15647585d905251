"""What a model takes and gives, read from its graph and its metadata; what is not understood is refused."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.errors import StartupError

ClassName = int | str

NAME_LIMIT = 200
"""Characters of a class or feature name; both become rows and metric labels."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output as the graph declares it; `shape` holds integers, names of free dimensions, or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """How to feed a classifier and read its answer. `classes` are in the order of the probability columns."""

    input_name: str
    feature_names: tuple[str, ...]
    missing_allowed: bool
    label_output: str | None
    probability_output: str
    probabilities_are_maps: bool
    classes: tuple[ClassName, ...]
    positive_index: int | None
    decision_threshold: float | None
    training_f1: float | None
    class_texts: tuple[str, ...] = field(init=False)
    """The classes as they stand in JSON keys, metric labels and the log."""
    feature_set: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_texts", tuple(str(name) for name in self.classes))
        object.__setattr__(self, "feature_set", frozenset(self.feature_names))

    @property
    def positive_class(self) -> str | None:
        """The positive class as text, None for more than two classes."""
        return None if self.positive_index is None else self.class_texts[self.positive_index]


def read_signature(
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    metadata: Mapping[str, str],
    graph_classes: tuple[ClassName, ...] | None,
) -> Signature:
    """Understand a model, or raise StartupError with what was found and what would help."""
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 2:
        raise StartupError(f"inputs are {_show(inputs)}, supported is one tensor(float) of shape [N, features]")
    label_output, probability_output = _find_outputs(outputs)
    classes = _read_classes(metadata, graph_classes, label_output, probability_output)
    positive_index = _read_positive_index(metadata, classes)
    return Signature(
        input_name=inputs[0].name,
        feature_names=_read_feature_names(metadata, inputs[0]),
        missing_allowed=_read_choice(metadata, "missing_values", ("refused", "allowed")) == "allowed",
        label_output=label_output.name if label_output else None,
        probability_output=probability_output.name,
        probabilities_are_maps=probability_output.type.startswith("seq(map("),
        classes=classes,
        positive_index=positive_index,
        decision_threshold=_read_threshold(metadata, positive_index),
        training_f1=_read_number(metadata, "training_f1"),
    )


def _find_outputs(outputs: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor]:
    labels = [output for output in outputs if output.type in ("tensor(int64)", "tensor(string)")]
    maps = [output for output in outputs if output.type in ("seq(map(int64,tensor(float)))", MAP_OF_STRINGS)]
    matrices = [output for output in outputs if output.type == "tensor(float)" and len(output.shape) == 2]
    if len(labels) > 1 or len(maps) + len(matrices) != 1 or len(outputs) > len(labels) + 1:
        raise StartupError(
            f"outputs are {_show(outputs)}, supported is a label (int64 or string) with probabilities, "
            "or probabilities alone: tensor(float) of shape [N, classes] or ZipMap"
        )
    return (labels[0] if labels else None), (maps + matrices)[0]


MAP_OF_STRINGS = "seq(map(string,tensor(float)))"


def _read_classes(
    metadata: Mapping[str, str],
    graph_classes: tuple[ClassName, ...] | None,
    label_output: Tensor | None,
    probability_output: Tensor,
) -> tuple[ClassName, ...]:
    width = probability_output.shape[1] if len(probability_output.shape) == 2 else None
    classes: tuple[ClassName, ...]
    if "classes" in metadata:
        classes = _read_names(metadata, "classes")
        if graph_classes is not None and label_output is not None and set(classes) != set(graph_classes):
            raise StartupError(f'metadata "classes" is {list(classes)}, the graph\'s are {list(graph_classes)}')
    elif graph_classes is not None:
        classes = graph_classes
        if not all(_is_name(name) for name in classes):
            raise StartupError(f'a class in the graph is no printable text up to {NAME_LIMIT}, add metadata "classes"')
    elif label_output is None and isinstance(width, int):
        classes = tuple(range(width))
    else:
        raise StartupError('the classes are not in the graph, add metadata "classes": a JSON array such as [0, 1]')
    if len(classes) < 2 or len(set(map(str, classes))) < len(classes):
        raise StartupError(f"classes are {list(classes)}, supported are two or more different ones")
    if isinstance(width, int) and width != len(classes):
        raise StartupError(f"{len(classes)} classes are named for {width} columns of probabilities")
    graph_type = label_output.type if label_output else ""
    label_type = {"tensor(int64)": int, "tensor(string)": str}.get(graph_type)
    if label_type is not None and not all(isinstance(name, label_type) for name in classes):
        raise StartupError(f"classes are {list(classes)}, but the graph's labels are {graph_type}")
    return classes


def _read_feature_names(metadata: Mapping[str, str], tensor: Tensor) -> tuple[str, ...]:
    width = tensor.shape[1]
    if "feature_names" not in metadata:
        if not isinstance(width, int) or width < 1:
            raise StartupError('the number of features is not in the graph, add metadata "feature_names"')
        return tuple(f"f{index}" for index in range(width))
    names = tuple(str(name) for name in _read_names(metadata, "feature_names"))
    if not names or len(set(names)) < len(names):
        raise StartupError('metadata "feature_names" is empty or names a feature twice')
    if isinstance(width, int) and width != len(names):
        raise StartupError(f'metadata "feature_names" has {len(names)} names for {width} features')
    return names


def _read_positive_index(metadata: Mapping[str, str], classes: tuple[ClassName, ...]) -> int | None:
    if len(classes) != 2:
        if "positive_class" in metadata:
            raise StartupError(f'metadata "positive_class" is for two classes, these are {len(classes)}')
        return None
    if "positive_class" not in metadata:
        return 1
    value = _read_json(metadata, "positive_class")
    if str(value) not in map(str, classes) or isinstance(value, bool):
        raise StartupError(f'metadata "positive_class" is {value!r}, the classes are {list(classes)}')
    return [str(name) for name in classes].index(str(value))


def _read_threshold(metadata: Mapping[str, str], positive_index: int | None) -> float | None:
    threshold = _read_number(metadata, "decision_threshold")
    if threshold is not None and (positive_index is None or not 0 <= threshold <= 1):
        raise StartupError(f'metadata "decision_threshold" is {threshold}, allowed is 0 to 1, for two classes')
    return threshold


def _read_number(metadata: Mapping[str, str], key: str) -> float | None:
    if key not in metadata:
        return None
    try:
        value = float(metadata[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise StartupError(f'metadata "{key}" is {metadata[key]!r}, which is no finite number')
    return value


def _read_choice(metadata: Mapping[str, str], key: str, choices: tuple[str, ...]) -> str:
    value = metadata.get(key, choices[0])
    if value not in choices:
        raise StartupError(f'metadata "{key}" is {value!r}, allowed is {" or ".join(choices)}')
    return value


def _read_names(metadata: Mapping[str, str], key: str) -> tuple[ClassName, ...]:
    names = _read_json(metadata, key)
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise StartupError(f'metadata "{key}" is not a JSON array of integers or of texts up to {NAME_LIMIT}')
    if len({type(name) for name in names}) > 1:
        raise StartupError(f'metadata "{key}" mixes integers and texts')
    return tuple(names)


def _is_name(name: object) -> bool:
    if isinstance(name, str):
        return 0 < len(name) <= NAME_LIMIT and name.isprintable()
    return isinstance(name, int) and not isinstance(name, bool) and abs(name) < 2**63


def _read_json(metadata: Mapping[str, str], key: str) -> object:
    try:
        value: object = json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise StartupError(f'metadata "{key}" is not JSON: {metadata[key][:80]!r}') from None
    return value


def _show(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(f"{tensor.name}: {tensor.type}{list(tensor.shape)}" for tensor in tensors) or "none"


DecisionRule = Literal["threshold", "label", "argmax"]
"""What decides the predicted class: the metadata's threshold, else the graph's label, else the largest probability."""


def decision_rule(signature: Signature) -> DecisionRule:
    """Return which of the three rules holds for this model."""
    if signature.decision_threshold is not None:
        return "threshold"
    return "argmax" if signature.label_output is None else "label"
