"""Read from an ONNX file what onnxruntime does not tell: the classes that its classifier nodes were trained on.

The file is a protocol buffer. Only the few fields on the way to those nodes are followed, so that the server need not
carry the `onnx` package and its compiler-generated classes (40 MiB of memory, 0.3 s of start).
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Iterable, Iterator

MODEL_GRAPH, NODE_ATTRIBUTE = 7, 5
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_OUTPUT = 1, 5, 12
VALUE_NAME = 1
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR = 1, 2, 4
ATTRIBUTE_NAME, ATTRIBUTE_INTS, ATTRIBUTE_STRINGS = 1, 8, 9
TENSOR_INT32S, TENSOR_STRINGS, TENSOR_INT64S, TENSOR_NAME = 5, 6, 7, 8

FORWARDING = frozenset({b"Cast", b"Identity", b"Reshape", b"Flatten", b"Squeeze"})
"""Operators that pass labels on: the classes are those of the node before."""

SELECTING = frozenset({b"ArrayFeatureExtractor", b"Gather"})
"""Operators that pick each row's label from the array of classes, their first input."""

CLASS_ATTRIBUTES = frozenset(
    {b"classlabels_int64s", b"classlabels_ints", b"classlabels_strings", b"classlabels_strings_list"}
)
"""Where ai.onnx.ml's TreeEnsembleClassifier, LinearClassifier, SVMClassifier and ZipMap keep their classes."""


Classes = tuple[int, ...] | tuple[str, ...]


def read_classes(model: bytes) -> Classes | None:
    """Return the classes, in the order of the probabilities, of the node that makes the answer; None if none tells.

    Classifiers inside an ensemble do not count: they may number its classes. Raises ValueError when `model` is no
    protocol buffer.
    """
    for graph in _bytes_fields(memoryview(model), MODEL_GRAPH):
        nodes = list(_bytes_fields(graph, GRAPH_NODE))
        outputs = [name for output in _bytes_fields(graph, GRAPH_OUTPUT) for name in _texts(output, VALUE_NAME)]
        for name in outputs:
            if classes := _follow(name, nodes, graph):
                return classes
        if len(outputs) == 1:  # probabilities alone: nothing but the last classifier can have made them
            return _first(_read_class_attributes(node) for node in reversed(nodes))
    return None


def _follow(name: bytes, nodes: list[memoryview], graph: memoryview) -> Classes | None:
    """Follow an output back to the node that makes it: a classifier's label, a ZipMap, or a choice from an array."""
    for node in reversed(nodes):  # a node stands behind those that make its inputs
        if name not in _texts(node, NODE_OUTPUT)[:1]:
            continue
        operator, inputs = _texts(node, NODE_OPERATOR)[:1], _texts(node, NODE_INPUT)
        if FORWARDING.intersection(operator) and inputs:
            name = inputs[0]
        elif SELECTING.intersection(operator) and inputs:
            return _read_initializer(graph, inputs[0])
        else:
            return _read_class_attributes(node)
    return None


def _read_initializer(graph: memoryview, name: bytes) -> Classes | None:
    for tensor in _bytes_fields(graph, GRAPH_INITIALIZER):
        if name in _texts(tensor, TENSOR_NAME):
            texts = tuple(text.decode() for text in _texts(tensor, TENSOR_STRINGS))
            return texts or tuple(_integers(tensor, TENSOR_INT32S, TENSOR_INT64S)) or None
    return None


def _read_class_attributes(node: memoryview) -> Classes | None:
    return _first(_read_class_attribute(attribute) for attribute in _bytes_fields(node, NODE_ATTRIBUTE))


def _first(candidates: Iterable[Classes | None]) -> Classes | None:
    return next((classes for classes in candidates if classes), None)


def _read_class_attribute(attribute: memoryview) -> Classes | None:
    name = next(_bytes_fields(attribute, ATTRIBUTE_NAME), None)  # the first field: the others may be millions
    if name is None or bytes(name) not in CLASS_ATTRIBUTES:
        return None
    texts = tuple(text.decode() for text in _texts(attribute, ATTRIBUTE_STRINGS))
    return texts or tuple(_integers(attribute, ATTRIBUTE_INTS)) or None


def _texts(message: memoryview, wanted: int) -> list[bytes]:
    return [bytes(value) for value in _bytes_fields(message, wanted)]


def _integers(message: memoryview, *wanted: int) -> list[int]:
    integers: list[int] = []
    for number, value in _fields(message):
        if number in wanted:
            integers += [value] if isinstance(value, int) else _packed_integers(value)
    return [value - (1 << 64) if value >> 63 else value for value in integers]


def _bytes_fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, integer or bytes) of one message, in order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = _varint(message, at)
            case 5:
                size = 4
            case kind:
                raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"truncated at byte {at}")
        yield key >> 3, message[at : at + size]
        at += size


def _packed_integers(message: memoryview) -> list[int]:
    integers, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        integers.append(value)
    return integers


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"no integer ends at byte {at}")
