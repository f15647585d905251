"""Read from an ONNX file what onnxruntime does not show: classes, categories, the operator behind each output.

The file is a protocol buffer. This module reads the few fields that it needs, so that the server can do without the
`onnx` package and its generated classes (40 MiB of memory, 0.3 s of start).
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.serving.protobuf import encode_field, read_fields, read_integers, read_messages, read_texts

MODEL_GRAPH, MODEL_METADATA, NODE_ATTRIBUTE = 7, 14, 5
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
ENTRY_KEY, ENTRY_VALUE = 1, 2
VALUE_NAME = 1
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR = 1, 2, 4
ATTRIBUTE_NAME, ATTRIBUTE_INTS, ATTRIBUTE_STRINGS = 1, 8, 9
TENSOR_INT32S, TENSOR_STRINGS, TENSOR_INT64S, TENSOR_NAME = 5, 6, 7, 8

FORWARDING = frozenset({b"Cast", b"Identity", b"Reshape", b"Flatten", b"Squeeze", b"Unsqueeze"})
"""Operators that pass labels on unchanged: the node before them has the classes."""

SELECTING = frozenset({b"ArrayFeatureExtractor", b"Gather"})
"""Operators that pick each row's label from the array of classes, their first input."""

CLASS_ATTRIBUTES = frozenset(
    {b"classlabels_int64s", b"classlabels_ints", b"classlabels_strings", b"classlabels_strings_list"}
)
"""Attributes in which TreeEnsembleClassifier, LinearClassifier, SVMClassifier and ZipMap (ai.onnx.ml) keep classes."""

Names = tuple[int, ...] | tuple[str, ...]
"""Classes, or categories of a feature: all integers or all texts."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the file says beside its inputs, outputs and metadata. `makers`: the operator that makes each output."""

    classes: Names | None
    categories: Sequence[Names]
    makers: Mapping[str, str | None]


def read_facts(model: bytes, outputs: Iterable[str]) -> GraphFacts:
    """Read the facts of a model and its outputs. Raises ValueError when `model` is not a protocol buffer."""
    makers = {output: read_operator(model, output) for output in outputs}
    return GraphFacts(read_classes(model), read_categories(model), makers)


def read_classes(model: bytes) -> Names | None:
    """Return the classes of the node that makes the answer, in the order of the probabilities; None if unknown.

    Ignores classifiers inside an ensemble, which may use numbers for the ensemble's classes. Raises ValueError when
    `model` is not a protocol buffer.
    """
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        nodes = list(read_messages(graph, GRAPH_NODE))
        outputs = [name for output in read_messages(graph, GRAPH_OUTPUT) for name in read_texts(output, VALUE_NAME)]
        outputs.sort(key=lambda name: not _is_map(name, nodes))  # skl2onnx cuts the label's array to 32 bits
        for name in outputs:
            if classes := _follow(name, nodes, graph):
                return classes
        if len(outputs) == 1:  # probabilities only: the last classifier must have made them
            return _first(_read_class_attributes(node) for node in reversed(nodes))
    return None


def _follow(name: bytes, nodes: list[memoryview], graph: memoryview) -> Names | None:
    """Return the classes of the node that makes an output: a classifier, a ZipMap, or a choice from an array."""
    node = _find_maker(name, nodes)
    if node is None:
        return None
    operator, inputs = read_texts(node, NODE_OPERATOR)[:1], read_texts(node, NODE_INPUT)
    if SELECTING.intersection(operator) and inputs:
        return _read_initializer(graph, inputs[0])
    return _read_class_attributes(node)


def _is_map(name: bytes, nodes: list[memoryview]) -> bool:
    node = _find_maker(name, nodes)
    return node is not None and read_texts(node, NODE_OPERATOR)[:1] == [b"ZipMap"]


def _find_maker(name: bytes, nodes: list[memoryview]) -> memoryview | None:
    """Return the node that makes this value as its first output; go back through nodes that only pass it on."""
    for node in reversed(nodes):  # ONNX sorts nodes: those that make a node's inputs come before it
        if name not in read_texts(node, NODE_OUTPUT)[:1]:
            continue
        inputs = read_texts(node, NODE_INPUT)
        if not inputs or not FORWARDING.intersection(read_texts(node, NODE_OPERATOR)[:1]):
            return node
        name = inputs[0]
    return None


def _read_initializer(graph: memoryview, name: bytes) -> Names | None:
    for tensor in read_messages(graph, GRAPH_INITIALIZER):
        if name in read_texts(tensor, TENSOR_NAME):
            texts = tuple(text.decode() for text in read_texts(tensor, TENSOR_STRINGS))
            return texts or tuple(read_integers(tensor, TENSOR_INT32S, TENSOR_INT64S)) or None
    return None


def _read_class_attributes(node: memoryview) -> Names | None:
    return _first(_read_attribute(attribute, CLASS_ATTRIBUTES) for attribute in read_messages(node, NODE_ATTRIBUTE))


def _first(candidates: Iterable[Names | None]) -> Names | None:
    return next((classes for classes in candidates if classes), None)


def _read_attribute(attribute: memoryview, wanted: frozenset[bytes]) -> Names | None:
    name = next(read_messages(attribute, ATTRIBUTE_NAME), None)  # read no further: there may be millions of values
    if name is None or bytes(name) not in wanted:
        return None
    texts = tuple(text.decode() for text in read_texts(attribute, ATTRIBUTE_STRINGS))
    return texts or tuple(read_integers(attribute, ATTRIBUTE_INTS)) or None


def read_operator(model: bytes, output: str) -> str | None:
    """Return the operator that makes an output, going back through those that only pass it on; None if no node does."""
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        node = _find_maker(output.encode(), list(read_messages(graph, GRAPH_NODE)))
        return None if node is None else b"".join(read_texts(node, NODE_OPERATOR)[:1]).decode()
    return None


CATEGORIES = frozenset({b"cats_strings", b"cats_int64s"})


def read_categories(model: bytes) -> list[Names]:
    """Return the categories of each OneHotEncoder in the order of the nodes, usually the order of the columns."""
    return [categories for node in _list_nodes(model) if (categories := _read_categories(node))]


def _read_categories(node: memoryview) -> Names | None:
    return _first(_read_attribute(attribute, CATEGORIES) for attribute in read_messages(node, NODE_ATTRIBUTE))


def _list_nodes(model: bytes) -> Iterator[memoryview]:
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        yield from read_messages(graph, GRAPH_NODE)


def list_optional_inputs(model: bytes) -> list[str]:
    """Return the inputs that have a default value in the file: onnxruntime does not require them."""
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        inputs = [name for one in read_messages(graph, GRAPH_INPUT) for name in read_texts(one, VALUE_NAME)]
        own = {name for one in read_messages(graph, GRAPH_INITIALIZER) for name in read_texts(one, TENSOR_NAME)}
        return [name.decode() for name in inputs if name in own]
    return []


def set_metadata(model: bytes, entries: Mapping[str, str]) -> bytes:
    """Return the model with these metadata entries; they replace entries with the same keys."""
    kept, start, message = [], 0, memoryview(model)
    replaced = {key.encode() for key in entries}
    for number, value, end in read_fields(message):
        keys = read_texts(value, ENTRY_KEY) if number == MODEL_METADATA and isinstance(value, memoryview) else []
        if not replaced.intersection(keys):
            kept.append(bytes(message[start:end]))
        start = end
    added = [
        encode_field(MODEL_METADATA, encode_field(ENTRY_KEY, key.encode()) + encode_field(ENTRY_VALUE, value.encode()))
        for key, value in entries.items()
    ]
    return b"".join([*kept, *added])
