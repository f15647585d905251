"""Read from an ONNX file what onnxruntime does not show: classes, categories, the operator behind each output.

The file is a protocol buffer. This module reads the few fields that it needs, so that the server can do without the
`onnx` package and its generated classes (40 MiB of memory, 0.3 s of start).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.serving.name_tables import Names, read_attributes, read_constant, read_encoder, read_tensor
from app.serving.onnx_fields import (
    ENTRY_KEY,
    ENTRY_VALUE,
    GRAPH_INITIALIZER,
    GRAPH_INPUT,
    GRAPH_NODE,
    GRAPH_OUTPUT,
    MODEL_GRAPH,
    MODEL_METADATA,
    NODE_INPUT,
    NODE_OPERATOR,
    NODE_OUTPUT,
    TENSOR_NAME,
    VALUE_NAME,
)
from app.serving.protobuf import encode_field, read_fields, read_messages, read_texts

FORWARDING = frozenset({b"Cast", b"Identity", b"Reshape", b"Flatten", b"Squeeze", b"Unsqueeze"})
"""Operators that pass labels on unchanged: the node before them has the classes."""

CAPTURING = frozenset({b"If", b"Loop", b"Scan", b"SequenceMap"})
"""Operators with graphs of their own, which may use values that are not among the node's inputs."""

SELECTING = frozenset({b"ArrayFeatureExtractor", b"Gather"})
"""Operators that pick each row's label from the array of classes, their first input."""

CLASS_ATTRIBUTES = frozenset(
    {b"classlabels_int64s", b"classlabels_ints", b"classlabels_strings", b"classlabels_strings_list"}
)
"""Attributes in which TreeEnsembleClassifier, LinearClassifier, SVMClassifier and ZipMap (ai.onnx.ml) keep classes."""

INDEXING = frozenset({b"ArgMax", b"ArgMin"})
"""Operators whose answer is the index of a class."""


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the file says beside its inputs, outputs and metadata."""

    classes: Names | None
    """The classes of the node that makes the answer, in the order of the probabilities; None if unknown."""
    output_classes: Mapping[str, Names]
    """The classes from which each output takes its values, for the outputs that do so."""
    constants: frozenset[str]
    """The outputs that are the same for all rows."""
    categories: Sequence[Names]
    makers: Mapping[str, str | None]
    """The operator that makes each output."""


def read_facts(model: bytes, outputs: Iterable[str]) -> GraphFacts:
    """Read the facts of a model and its outputs. Raises ValueError when `model` is not a protocol buffer."""
    return GraphFacts(
        read_classes(model),
        _read_output_classes(model),
        _find_constants(model),
        read_categories(model),
        {output: read_operator(model, output) for output in outputs},
    )


def read_classes(model: bytes) -> Names | None:
    """Return the classes of the node that makes the answer, in the order of the probabilities; None if unknown.

    Ignores classifiers inside an ensemble, which may use numbers for the ensemble's classes. Raises ValueError when
    `model` is not a protocol buffer.
    """
    if by_output := _read_output_classes(model):
        return next(iter(by_output.values()))
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        nodes, outputs = _list_nodes_and_outputs(graph)
        if len(outputs) == 1:  # probabilities only: the last classifier must have made them
            return _first(read_attributes(node, CLASS_ATTRIBUTES) for node in reversed(nodes))
    return None


def _read_output_classes(model: bytes) -> dict[str, Names]:
    """Return the classes from which each output takes its values, for the outputs that do so."""
    found = {}
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        nodes, outputs = _list_nodes_and_outputs(graph)
        for name in outputs:
            if classes := _follow(name, nodes, graph):
                found[name.decode()] = classes
    return found


def _list_nodes_and_outputs(graph: memoryview) -> tuple[list[memoryview], list[bytes]]:
    outputs = [name for output in read_messages(graph, GRAPH_OUTPUT) for name in read_texts(output, VALUE_NAME)]
    return list(read_messages(graph, GRAPH_NODE)), outputs


def _follow(name: bytes, nodes: list[memoryview], graph: memoryview) -> Names | None:
    """Return the classes of the node that makes an output: a classifier, a ZipMap, or a choice from an array."""
    node = _find_maker(name, nodes)
    if node is None:
        return None
    operator, inputs = read_texts(node, NODE_OPERATOR)[:1], read_texts(node, NODE_INPUT)
    if SELECTING.intersection(operator) and inputs:
        return _read_array(inputs[0], nodes, graph)
    if operator == [b"LabelEncoder"] and inputs:
        return _translate(node, inputs[0], nodes, graph)
    return read_attributes(node, CLASS_ATTRIBUTES)


def _read_array(name: bytes, nodes: list[memoryview], graph: memoryview) -> Names | None:
    """Return the elements of an array that is kept in the file: an initializer, a Constant, or encoded from one."""
    maker = _find_maker(name, nodes)
    if maker is None:
        return _read_initializer(graph, _go_back(name, nodes))
    if read_texts(maker, NODE_OPERATOR)[:1] == [b"LabelEncoder"]:
        return _encode(maker, _read_array(read_texts(maker, NODE_INPUT)[0], nodes, graph))
    return read_constant(maker) if read_texts(maker, NODE_OPERATOR)[:1] == [b"Constant"] else None


def _translate(encoder: memoryview, name: bytes, nodes: list[memoryview], graph: memoryview) -> Names | None:
    """Return the classes after a LabelEncoder: of a classifier's classes, or of the index of a class."""
    before = _follow(name, nodes, graph)
    maker = _find_maker(name, nodes)
    if before is None and maker is not None and INDEXING.intersection(read_texts(maker, NODE_OPERATOR)[:1]):
        before = tuple(range(len(read_encoder(encoder))))
    return _encode(encoder, before)


def _encode(encoder: memoryview, names: Names | None) -> Names | None:
    """Return what a LabelEncoder makes of names; None when it does not know one, or makes one of two."""
    table = read_encoder(encoder)
    encoded = [table[name] for name in names or () if name in table]
    if names is None or len(set(encoded)) < len(names):
        return None
    texts = [name for name in encoded if isinstance(name, str)]
    return tuple(texts) if texts else tuple(name for name in encoded if isinstance(name, int))


def _find_maker(name: bytes, nodes: list[memoryview]) -> memoryview | None:
    """Return the node that makes this value as its first output; go back through nodes that only pass it on."""
    name = _go_back(name, nodes)
    return next((node for node in reversed(nodes) if name in read_texts(node, NODE_OUTPUT)[:1]), None)


def _go_back(name: bytes, nodes: list[memoryview]) -> bytes:
    """Return the value that nodes have only passed on to be this one."""
    for node in reversed(nodes):  # ONNX sorts nodes: those that make a node's inputs come before it
        inputs = read_texts(node, NODE_INPUT)
        if (
            name in read_texts(node, NODE_OUTPUT)[:1]
            and inputs
            and FORWARDING.intersection(read_texts(node, NODE_OPERATOR)[:1])
        ):
            name = inputs[0]
    return name


def _find_constants(model: bytes) -> frozenset[str]:
    """Return the outputs that no input reaches, such as an array of the classes."""
    constants: set[bytes] = set()
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        nodes, outputs = _list_nodes_and_outputs(graph)
        own = {name for tensor in read_messages(graph, GRAPH_INITIALIZER) for name in read_texts(tensor, TENSOR_NAME)}
        inputs = {name for one in read_messages(graph, GRAPH_INPUT) for name in read_texts(one, VALUE_NAME)}
        reached = inputs - own
        for node in nodes:
            is_open = CAPTURING.intersection(read_texts(node, NODE_OPERATOR)[:1])
            if is_open or not reached.isdisjoint(read_texts(node, NODE_INPUT)):
                reached.update(read_texts(node, NODE_OUTPUT))
        constants.update(set(outputs) - reached)
    return frozenset(name.decode() for name in constants)


def _read_initializer(graph: memoryview, name: bytes) -> Names | None:
    for tensor in read_messages(graph, GRAPH_INITIALIZER):
        if name in read_texts(tensor, TENSOR_NAME):
            return read_tensor(tensor)
    return None


def _first(candidates: Iterable[Names | None]) -> Names | None:
    return next((classes for classes in candidates if classes), None)


def read_operator(model: bytes, output: str) -> str | None:
    """Return the operator that makes an output, going back through those that only pass it on; None if no node does."""
    for graph in read_messages(memoryview(model), MODEL_GRAPH):
        node = _find_maker(output.encode(), list(read_messages(graph, GRAPH_NODE)))
        return None if node is None else b"".join(read_texts(node, NODE_OPERATOR)[:1]).decode()
    return None


CATEGORIES = frozenset({b"cats_strings", b"cats_int64s"})


def read_categories(model: bytes) -> list[Names]:
    """Return the categories of each OneHotEncoder in the order of the nodes, usually the order of the columns."""
    return [categories for node in _list_nodes(model) if (categories := read_attributes(node, CATEGORIES))]


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
