"""Which outputs of a graph are the label and the probabilities; what is not a classifier is refused plainly."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import StartupError
from app.serving.features import Tensor, show
from app.serving.graph import GraphFacts
from app.serving.metadata import Metadata
from app.serving.name_tables import Names

LABEL_TYPES = {
    "tensor(int64)": int,
    "tensor(int32)": int,
    "tensor(bool)": int,
    "tensor(float)": int,
    "tensor(double)": int,
    "tensor(string)": str,
}
"""The Python type of the classes that a label of this type names: false is 0, true is 1, 2.0 is 2."""

FLOAT_TYPES = ("tensor(float)", "tensor(double)", "tensor(float16)")
MAP_TYPES = ("seq(map(int64,tensor(float)))", "seq(map(string,tensor(float)))")

JOINED = "probabilities"
"""The name of the probabilities when each class has an output of its own."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs that are used; `classes` are theirs, None if the graph does not name them.

    `columns`: an output per class, in the order of the classes, of which `answer` is made.
    """

    label: Tensor | None
    answer: Tensor
    columns: tuple[str, ...]
    classes: Names | None


def find_outputs(outputs: Sequence[Tensor], metadata: Metadata, graph: GraphFacts) -> Outputs:
    """Find the label, if there is one, and the probabilities; raise StartupError with what was found and what helps."""
    used = [output for output in outputs if not _is_constant(output, graph)]
    if "probability_output" not in metadata:
        _refuse_several_labels(used)
    if columns := _find_columns(used, metadata, graph):
        rest = [output for output in used if output not in columns]
        label = _find_label(rest, graph)
        joined = Tensor(JOINED, "tensor(float)", (None, len(columns)))
        return Outputs(label, joined, tuple(column.name for column in columns), _find_classes(label, None, graph))
    answer = _find_answer(used, metadata, graph)
    label = _find_label([output for output in used if output is not answer], graph)
    return Outputs(label, answer, (), _find_classes(label, answer, graph))


def _is_constant(output: Tensor, graph: GraphFacts) -> bool:
    """Return whether an output is the same array for all rows, as skl2onnx's `output_class_labels` adds it."""
    rows = next(iter(output.shape), None)
    return output.name in graph.constants and isinstance(rows, int) and rows > 1


def _refuse_several_labels(outputs: Sequence[Tensor]) -> None:
    """Raise StartupError for a model that gives a row several classes, as scikit-learn's multi-output models do."""
    for output in outputs:
        width = output.shape[1] if len(output.shape) == 2 else 1
        is_wide = output.type in ("tensor(int64)", "tensor(string)") and isinstance(width, int) and width > 1
        if is_wide or output.type.startswith("seq(tensor("):
            raise StartupError(
                f"outputs are {show(outputs)}: {output.name!r} has several labels for a row; models with several "
                "labels for a row (multi-label, multi-output) are not served: export a classifier for each label"
            )


def _find_columns(outputs: Sequence[Tensor], metadata: Metadata, graph: GraphFacts) -> list[Tensor]:
    """Return the outputs of skl2onnx's `zipmap="columns"` in the order of the classes; none if the graph has others.

    They are named after the classes, i0, i1 or sno, syes; where a name was taken, they are in order.
    """
    columns = [one for one in outputs if one.type in FLOAT_TYPES and len(one.shape) == 1]
    classes = graph.classes or ()
    if "probability_output" in metadata or len(columns) != len(classes) or len(columns) < 2:
        return []
    by_name = {column.name: column for column in columns}
    named = [by_name.get(f"{'s' if isinstance(name, str) else 'i'}{name}") for name in classes]
    in_order = [column for column in named if column is not None]
    if len(in_order) == len(columns):
        return in_order
    return columns if all(graph.makers.get(column.name) == "Slice" for column in columns) else []


def _find_answer(outputs: Sequence[Tensor], metadata: Metadata, graph: GraphFacts) -> Tensor:
    """Return the output with the probabilities: the one that metadata names, else the only one that can have them."""
    candidates = [one for one in outputs if one.type in MAP_TYPES or _is_matrix(one)]
    asked = metadata.get("probability_output")
    if asked is not None:
        named = [one for one in candidates if one.name == asked]
        if not named:
            names = ", ".join(one.name for one in candidates) or "none"
            raise StartupError(
                f'metadata "probability_output" is {asked!r}, the outputs that can have them are {names}'
            )
        return named[0]
    answers = [one for one in candidates if one.name not in graph.output_classes or one.type in MAP_TYPES]
    if len(answers or candidates) == 1:
        return (answers or candidates)[0]
    raise StartupError(f"outputs are {show(outputs)}, {SUPPORTED}: {_advise(outputs, answers)}")


SUPPORTED = (
    "supported is a label (integers, texts, booleans) with probabilities, or probabilities only, as one tensor of "
    "floats of shape [N, classes], [N, 1] or [N], or as ZipMap"
)


def _advise(outputs: Sequence[Tensor], answers: Sequence[Tensor]) -> str:
    if answers:
        names = " or ".join(one.name for one in answers)
        return f'name the output that has the probabilities in metadata "probability_output": {names}'
    if any(one.type in LABEL_TYPES for one in outputs):
        return "it has only a label: export the classifier with its probabilities"
    return "put reshaping and casting into the graph"


def _is_matrix(output: Tensor) -> bool:
    return output.type in FLOAT_TYPES and len(output.shape) in (1, 2)


def _find_label(others: Sequence[Tensor], graph: GraphFacts) -> Tensor | None:
    """Return the output that names a class: the only one whose values are classes, else the only one that may be."""
    possible = [
        one
        for one in others
        if one.type in LABEL_TYPES
        and (len(one.shape) == 1 or one.shape[1:] in ((1,), (None,)))
        and (one.type not in FLOAT_TYPES or one.name in graph.output_classes)
    ]
    known = [one for one in possible if one.name in graph.output_classes]
    chosen = known or possible
    return chosen[0] if len(chosen) == 1 else None


def explain_missing_classes(label: Tensor | None, answer: Tensor) -> str:
    """Return why a model without names of classes is refused, and what helps."""
    cure = 'add metadata "classes", such as [0, 1]'
    if label is None or answer.type in MAP_TYPES or (len(answer.shape) == 2 and answer.shape[1] != 1):
        return f"the classes are not in the graph: {cure}"
    return (
        f"the classes are not in the graph, and {answer.name!r} has one column: outlier detectors (IsolationForest, "
        f"OneClassSVM, LocalOutlierFactor) have such outputs and are not served; for a classifier of two classes {cure}"
    )


def _find_classes(label: Tensor | None, answer: Tensor | None, graph: GraphFacts) -> Names | None:
    """Return the classes of the label or the ZipMap; if the graph names none for any output, of its last classifier."""
    for one in (answer, label):
        if one is not None and one.name in graph.output_classes:
            return graph.output_classes[one.name]
    return None if graph.output_classes else graph.classes
