"""Read names of classes from tensors, attributes and LabelEncoder nodes of an ONNX file."""

from collections.abc import Mapping

import numpy as np

from app.serving.onnx_fields import (
    ATTRIBUTE_FLOATS,
    ATTRIBUTE_INTS,
    ATTRIBUTE_NAME,
    ATTRIBUTE_STRINGS,
    ATTRIBUTE_TENSOR,
    NODE_ATTRIBUTE,
    TENSOR_DATA_TYPE,
    TENSOR_DOUBLES,
    TENSOR_FLOATS,
    TENSOR_INT32S,
    TENSOR_INT64S,
    TENSOR_RAW_DATA,
    TENSOR_STRINGS,
)
from app.serving.protobuf import read_integers, read_messages, read_texts

Names = tuple[int, ...] | tuple[str, ...]
"""Classes, or categories of a feature: all integers or all texts."""

RAW_TYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 11: "<f8"}
"""By the number of a tensor's data type: how numpy reads its raw data."""

CONSTANT_ATTRIBUTES = frozenset({b"value", b"value_ints", b"value_strings"})
KEYS = frozenset({b"keys_strings", b"keys_int64s", b"keys_floats", b"keys_tensor"})
VALUES = frozenset({b"values_strings", b"values_int64s", b"values_floats", b"values_tensor"})
OLD_CLASSES = frozenset({b"classes_strings"})
"""LabelEncoder of ai.onnx.ml 1: text number i is the class i."""


def read_tensor(tensor: memoryview) -> Names | None:
    """Return the elements of a tensor; None when it has none, or other values than integers and texts."""
    if texts := read_texts(tensor, TENSOR_STRINGS):
        return tuple(text.decode() for text in texts)
    raw_type = RAW_TYPES.get(next(iter(read_integers(tensor, TENSOR_DATA_TYPE)), 0))
    if raw_type is None:  # halves of numbers, which are kept as integers, too
        return None
    if integers := read_integers(tensor, TENSOR_INT32S, TENSOR_INT64S):
        return tuple(integers)
    if raw := b"".join(read_texts(tensor, TENSOR_RAW_DATA)):
        return _name_numbers(raw, raw_type)
    floats = b"".join(read_texts(tensor, TENSOR_FLOATS))
    return _name_numbers(floats, "<f4") or _name_numbers(b"".join(read_texts(tensor, TENSOR_DOUBLES)), "<f8")


def _name_numbers(raw: bytes, dtype: str) -> Names | None:
    """Return numbers as integers; None when one is a fraction: scikit-learn takes those for no classes."""
    numbers = np.frombuffer(raw, dtype).tolist()
    return tuple(map(int, numbers)) if numbers and all(float(number).is_integer() for number in numbers) else None


def _read_attribute(attribute: memoryview, wanted: frozenset[bytes]) -> Names | None:
    """Return the integers or texts of an attribute, if it has one of these names."""
    name = next(read_messages(attribute, ATTRIBUTE_NAME), None)  # read no further: there may be millions of values
    if name is None or bytes(name) not in wanted:
        return None
    if texts := read_texts(attribute, ATTRIBUTE_STRINGS):
        return tuple(text.decode() for text in texts)
    if integers := read_integers(attribute, ATTRIBUTE_INTS):
        return tuple(integers)
    for tensor in read_messages(attribute, ATTRIBUTE_TENSOR):
        return read_tensor(tensor)
    return _name_numbers(b"".join(read_texts(attribute, ATTRIBUTE_FLOATS)), "<f4")


def read_attributes(node: memoryview, wanted: frozenset[bytes]) -> Names | None:
    """Return the integers or texts of the node's first attribute that has one of these names."""
    read = (_read_attribute(attribute, wanted) for attribute in read_messages(node, NODE_ATTRIBUTE))
    return next((names for names in read if names), None)


def read_constant(node: memoryview) -> Names | None:
    """Return the elements of a Constant node."""
    return read_attributes(node, CONSTANT_ATTRIBUTES)


def read_encoder(node: memoryview) -> Mapping[int | str, int | str]:
    """Return what a LabelEncoder makes of each value that it knows."""
    old = read_attributes(node, OLD_CLASSES)
    keys = tuple(range(len(old))) if old else read_attributes(node, KEYS)
    values = old or read_attributes(node, VALUES)
    if keys is None or values is None or len(keys) != len(values):
        return {}
    return dict(zip(keys, values, strict=True))
