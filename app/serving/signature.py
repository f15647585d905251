"""What a model takes and returns, read from its graph and its metadata; a model that is not understood is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from app.errors import StartupError
from app.serving.examples import read_examples
from app.serving.features import Feature, ModelInput, Tensor, Value, read_inputs
from app.serving.graph import GraphFacts
from app.serving.metadata import NAME_LIMIT, Metadata, is_name, read_choice, read_entry, read_names, read_number
from app.serving.name_tables import Names
from app.serving.outputs import LABEL_TYPES, MAP_TYPES, explain_missing_classes, find_outputs

ClassName = int | str

MAX_BATCH_VALUES = 1_000_000
"""Most probabilities, and most features, of a request's rows: about 30 MB of answer and a second of work."""


@dataclass(frozen=True, slots=True)
class Signature:
    """A classifier's inputs and outputs. `classes` are in the order of the probability columns."""

    features: tuple[Feature, ...]
    inputs: tuple[ModelInput, ...]
    batching_doubt: str | None
    """Why each row is a run of its own; None: the rows of a batch are one run."""
    examples: Sequence[Sequence[Value]]
    label_output: str | None
    probability_output: str
    probability_columns: tuple[str, ...]
    """The outputs of the single classes, of which `probability_output` is made; empty if the graph has that output."""
    probabilities_are_maps: bool
    are_logits: bool
    classes: tuple[ClassName, ...]
    positive_index: int | None
    decision_threshold: float | None
    training_f1: float | None
    class_columns: tuple[int, ...] | None = None
    """The graph's column of each class; None: they are in the same order."""
    has_mirrored_logits: bool = False
    """Whether the logits are two columns [-s, s], of which s belongs to a sigmoid."""
    label_doubt: str | None = None
    """Why the graph's label is not used; None: it is, or the graph has none."""
    class_texts: tuple[str, ...] = field(init=False)
    """The classes as text, for JSON keys, metric labels and the log."""
    feature_names: tuple[str, ...] = field(init=False)
    feature_set: frozenset[str] = field(init=False)
    number_limit: float | None = field(init=False)
    """The largest value when every feature is a number of the same type, to check rows as a whole; else None."""

    max_rows: int = field(init=False)
    """The most rows of one request, which MAX_BATCH_VALUES allows."""
    has_sequences: bool = field(init=False)
    """Whether rows have tokens, as many as there are: rows of different lengths are not one run."""
    row_values: int = field(init=False)
    """The number of values that a row costs time and memory for: its features and its probabilities."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_texts", tuple(str(name) for name in self.classes))
        object.__setattr__(self, "feature_names", tuple(feature.name for feature in self.features))
        object.__setattr__(self, "feature_set", frozenset(self.feature_names))
        object.__setattr__(self, "has_sequences", any(one.is_sequence for one in self.inputs))
        widths = len(self.features), len(self.classes)
        object.__setattr__(self, "max_rows", max(1, MAX_BATCH_VALUES // max(widths)))
        object.__setattr__(self, "row_values", sum(widths))
        types = {feature.type for feature in self.features}
        is_plain = len(types) == 1 and self.features[0].kind == "number"
        object.__setattr__(self, "number_limit", self.features[0].type.high if is_plain else None)

    @property
    def positive_class(self) -> str | None:
        """The positive class as text, None for more than two classes."""
        return None if self.positive_index is None else self.class_texts[self.positive_index]

    @property
    def missing_allowed(self) -> bool:
        """Whether some feature may be missing."""
        return any(feature.missing_allowed for feature in self.features)

    def describe_features(self) -> list[dict[str, str]]:
        """Return the name and type of each feature, in the model's order."""
        return [{"name": feature.name, "type": feature.kind} for feature in self.features]


def read_signature(
    inputs: Sequence[Tensor], outputs: Sequence[Tensor], metadata: Metadata, graph: GraphFacts
) -> Signature:
    """Read a model's signature; raise StartupError with what was found and what to do when it is not supported."""
    missing_allowed = read_choice(metadata, "missing_values", ("refused", "allowed")) == "allowed"
    read = read_inputs(inputs, metadata, missing_allowed=missing_allowed)
    features = tuple(feature for _, of_input in read for feature in of_input)
    are_logits = read_choice(metadata, "output", ("probabilities", "logits")) == "logits"
    found = find_outputs(outputs, metadata, graph)
    label_output, answer, graph = found.label, found.answer, replace(graph, classes=found.classes)
    classes = _read_classes(metadata, graph, label_output, answer, are_logits=are_logits)
    positive_index = _read_positive_index(metadata, classes)
    are_maps = answer.type.startswith("seq(map(")
    return Signature(
        features=features,
        inputs=tuple(model_input for model_input, _ in read),
        batching_doubt=_read_batching_doubt(metadata, inputs),
        examples=read_examples(metadata, features, graph.categories),
        label_output=label_output.name if label_output else None,
        probability_output=answer.name,
        probability_columns=found.columns,
        probabilities_are_maps=are_maps,
        are_logits=are_logits,
        classes=classes,
        positive_index=positive_index,
        decision_threshold=_read_threshold(metadata, positive_index),
        training_f1=read_number(metadata, "training_f1"),
        class_columns=None if are_maps else _find_class_columns(classes, graph.classes),
    )


def _read_batching_doubt(metadata: Metadata, inputs: Sequence[Tensor]) -> str | None:
    """Return why the declarations ask for a run per row, None when they do not."""
    asked = read_choice(metadata, "batching", ("auto", "on", "off"))
    if any(tensor.shape[0] == 1 for tensor in inputs):
        if asked == "on":
            raise StartupError(
                'metadata "batching" is on, but an input has one row: export with a free first dimension, or drop it'
            )
        return "the graph takes one row"
    return 'metadata "batching" is off' if asked == "off" else None


def _find_class_columns(classes: tuple[ClassName, ...], in_graph: Names | None) -> tuple[int, ...] | None:
    """Return the graph's column of each class, by name; None when the graph has no such names or the same order."""
    texts, graph_texts = [str(name) for name in classes], [str(name) for name in in_graph or ()]
    if texts == graph_texts or set(texts) != set(graph_texts):
        return None
    return tuple(graph_texts.index(text) for text in texts)


def _count_columns(answer: Tensor) -> int | None:
    """Return the number of probability columns, None when the graph does not say it."""
    if answer.type in MAP_TYPES:
        return None
    width = answer.shape[1] if len(answer.shape) == 2 else 1
    return width if isinstance(width, int) else None


def _read_classes(
    metadata: Metadata, graph: GraphFacts, label_output: Tensor | None, answer: Tensor, *, are_logits: bool
) -> tuple[ClassName, ...]:
    columns, maker = _count_columns(answer), graph.makers.get(answer.name)
    if columns is not None and columns > 1 and maker == "Sigmoid" and not are_logits:
        raise StartupError(
            f"a Sigmoid makes the {columns} columns of {answer.name!r}: a row can have several classes, which is not "
            'supported; if the classes exclude each other, export without the Sigmoid and add metadata "output": logits'
        )
    classes: tuple[ClassName, ...]
    if "classes" in metadata:
        classes = read_names(metadata, "classes")
        if graph.classes is not None and label_output is not None and set(classes) != set(graph.classes):
            raise StartupError(f'metadata "classes" is {list(classes)}, the graph\'s are {list(graph.classes)}')
    elif graph.classes is not None:
        classes = graph.classes
        if not all(is_name(name) for name in classes):
            cure = 'add metadata "classes"' if label_output is None else "train and export it with other names"
            raise StartupError(
                f"a class in the graph is no text of 1 to {NAME_LIMIT} characters without control characters: {cure}"
            )
    elif columns is not None and (label_output is None or graph.makers.get(label_output.name) == "ArgMax"):
        classes = _count_classes(answer, columns, maker, are_logits=are_logits)
    else:
        raise StartupError(explain_missing_classes(label_output, answer))
    _check_classes(classes, columns, label_output)
    return classes


def _count_classes(answer: Tensor, columns: int, maker: str | None, *, are_logits: bool) -> tuple[int, ...]:
    """Return numbers from 0 for classes without names; raise StartupError when it may not be a classifier."""
    if not are_logits and maker != ("Sigmoid" if columns == 1 else "Softmax"):
        raise StartupError(
            f"{answer.name!r} has {columns} column(s) made by {maker}, which may not be probabilities: regressors and "
            'embeddings cannot be served; if it is a classifier, add metadata "classes", and "output": logits if it '
            "returns logits"
        )
    return tuple(range(max(columns, 2)))


def _check_classes(classes: tuple[ClassName, ...], columns: int | None, label_output: Tensor | None) -> None:
    if len(classes) < 2 or len(set(map(str, classes))) < len(classes):
        raise StartupError(f"classes are {list(classes)}, supported are two or more different ones")
    if columns is not None and columns != len(classes) and (columns, len(classes)) != (1, 2):
        raise StartupError(f"there are {len(classes)} classes, but {columns} columns of probabilities")
    graph_type = label_output.type if label_output else ""
    label_type = LABEL_TYPES.get(graph_type)
    if label_type is not None and not all(isinstance(name, label_type) for name in classes):
        raise StartupError(f"classes are {list(classes)}, but the graph's labels are {graph_type}")


def _read_positive_index(metadata: Metadata, classes: tuple[ClassName, ...]) -> int | None:
    if len(classes) != 2:
        if "positive_class" in metadata:
            raise StartupError(f'metadata "positive_class" needs two classes, this model has {len(classes)}')
        return None
    if "positive_class" not in metadata:
        return 1
    value = read_entry(metadata, "positive_class")
    if str(value) not in map(str, classes) or isinstance(value, bool):
        raise StartupError(f'metadata "positive_class" is {value!r}, the classes are {list(classes)}')
    return [str(name) for name in classes].index(str(value))


def _read_threshold(metadata: Metadata, positive_index: int | None) -> float | None:
    threshold = read_number(metadata, "decision_threshold")
    if threshold is not None and (positive_index is None or not 0 <= threshold <= 1):
        raise StartupError(f'metadata "decision_threshold" is {threshold}, allowed is 0 to 1, and only for two classes')
    return threshold


DecisionRule = Literal["threshold", "label", "argmax"]
"""How the class is predicted: by the metadata's threshold, else the graph's label, else the largest probability."""


def decision_rule(signature: Signature) -> DecisionRule:
    """Return the rule by which this model's class is predicted."""
    if signature.decision_threshold is not None:
        return "threshold"
    return "argmax" if signature.label_output is None or signature.label_doubt is not None else "label"
