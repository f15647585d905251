"""Read from an ONNX file what onnxruntime does not tell: the classes that its classifier nodes were trained on.

The file is a protocol buffer. Only the few fields on the way to those nodes are followed, so that the server need not
carry the `onnx` package and its compiler-generated classes (40 MiB of memory, 0.3 s of start).
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Iterator

MODEL_GRAPH, GRAPH_NODE, NODE_ATTRIBUTE = 7, 1, 5
ATTRIBUTE_NAME, ATTRIBUTE_INTS, ATTRIBUTE_STRINGS = 1, 8, 9

CLASS_ATTRIBUTES = frozenset(
    {b"classlabels_int64s", b"classlabels_ints", b"classlabels_strings", b"classlabels_strings_list"}
)
"""Where ai.onnx.ml's TreeEnsembleClassifier, LinearClassifier, SVMClassifier and ZipMap keep their classes."""


def read_classes(model: bytes) -> tuple[int, ...] | tuple[str, ...] | None:
    """Return the classes, in the order of the probabilities, of the last node that names them; None if none does.

    Raises ValueError when `model` is no protocol buffer.
    """
    found: tuple[int, ...] | tuple[str, ...] | None = None
    for graph in _bytes_fields(memoryview(model), MODEL_GRAPH):
        for node in _bytes_fields(graph, GRAPH_NODE):
            for attribute in _bytes_fields(node, NODE_ATTRIBUTE):
                found = _read_class_attribute(attribute) or found
    return found


def _read_class_attribute(attribute: memoryview) -> tuple[int, ...] | tuple[str, ...] | None:
    fields = list(_fields(attribute))
    names = [bytes(value) for number, value in fields if number == ATTRIBUTE_NAME and isinstance(value, memoryview)]
    if not CLASS_ATTRIBUTES.intersection(names):
        return None
    texts = [
        bytes(value).decode()
        for number, value in fields
        if number == ATTRIBUTE_STRINGS and isinstance(value, memoryview)
    ]
    integers: list[int] = []
    for number, value in fields:
        if number == ATTRIBUTE_INTS:
            integers += [value] if isinstance(value, int) else _packed_integers(value)
    return tuple(texts) or tuple(value - (1 << 64) if value >> 63 else value for value in integers) or None


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
