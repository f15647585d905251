"""Find the operators of a graph through which a row's answer depends on the other rows of the run."""

from collections.abc import Iterator

from app.serving.onnx_fields import (
    ATTRIBUTE_GRAPH,
    ATTRIBUTE_INT,
    ATTRIBUTE_NAME,
    FUNCTION_NODE,
    GRAPH_NODE,
    MODEL_FUNCTION,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    NODE_OPERATOR,
)
from app.serving.protobuf import read_integers, read_messages, read_texts

BODIES = frozenset({b"then_branch", b"else_branch", b"body"})
"""Attributes in which If, Loop and Scan keep graphs."""

AXIS = frozenset({b"axis"})

AXIS_OPERATORS = frozenset({"Softmax", "LogSoftmax", "Hardmax", "LpNormalization"})
"""Operators that compare what lies along `axis`: along axis 0 lie the rows."""


def find_row_mixing(model: bytes) -> str | None:
    """Return what makes rows of a run depend on each other, None when no such operator is found.

    Not every such graph can be told by its operators: what sums along an axis may sum over rows or over features.
    """
    message = memoryview(model)
    for graph in read_messages(message, MODEL_GRAPH):
        for node in _list_nodes(graph, GRAPH_NODE):
            if reason := _describe_mixing(node):
                return reason
    for function in read_messages(message, MODEL_FUNCTION):
        for node in _list_nodes(function, FUNCTION_NODE):
            if reason := _describe_mixing(node):
                return reason
    return None


def _list_nodes(parent: memoryview, field: int) -> Iterator[memoryview]:
    """Yield the nodes of a graph or function, and those of the graphs inside them."""
    for node in read_messages(parent, field):
        yield node
        for attribute in _list_attributes(node, BODIES):
            for graph in read_messages(attribute, ATTRIBUTE_GRAPH):
                yield from _list_nodes(graph, GRAPH_NODE)


def _list_attributes(node: memoryview, names: frozenset[bytes]) -> Iterator[memoryview]:
    """Yield the attributes with these names. Read no other ones: a tree ensemble's have millions of values."""
    for attribute in read_messages(node, NODE_ATTRIBUTE):
        name = next(read_messages(attribute, ATTRIBUTE_NAME), None)
        if name is not None and bytes(name) in names:
            yield attribute


def _describe_mixing(node: memoryview) -> str | None:
    operator = b"".join(read_texts(node, NODE_OPERATOR)[:1]).decode(errors="replace")
    if operator.startswith("DynamicQuantize"):
        return f"{operator} scales by all rows of a run"
    if operator in AXIS_OPERATORS and _read_axis(node) == 0:
        return f"{operator} has axis 0, and compares the rows of a run"
    return None


def _read_axis(node: memoryview) -> int | None:
    for attribute in _list_attributes(node, AXIS):
        return next(iter(read_integers(attribute, ATTRIBUTE_INT)), 0)
    return None
