"""Classes read from the bytes of an ONNX file, against the `onnx` package, and from bytes that are broken."""

import random
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from app.serving.graph import (
    CLASS_ATTRIBUTES,
    list_optional_inputs,
    read_categories,
    read_classes,
    read_operator,
    set_metadata,
)
from tests.support.family_models import BRANDS, CITIES, LOGITS, SOFTMAX, make_mixture, make_network, make_pipeline
from tests.support.onnx_models import Classes, build_echo, build_graph, build_linear, convert, declare

CONTENTS: dict[str, Callable[[], bytes]] = {
    "integers": lambda: build_linear((1, -2, 2**62)),
    "texts": lambda: build_linear(("ash", "größe", "")),
    "zipmap": lambda: convert("logistic", ("no", "yes"), zipmap=True),
    "forest": lambda: convert("forest", (1, 2, 3)),
    "forest with zipmap": lambda: convert("forest", ("a", "b", "c"), zipmap=True),
}

each_content = pytest.mark.parametrize("build", CONTENTS.values(), ids=CONTENTS)
each_small_content = pytest.mark.parametrize("build", list(CONTENTS.values())[:3], ids=list(CONTENTS)[:3])


def read_with_onnx(content: bytes) -> Classes:
    """Return the classes of the last node that names them, as the `onnx` package reads them."""
    names = {name.decode() for name in CLASS_ATTRIBUTES}
    nodes = onnx.load_from_string(content).graph.node
    attributes = [attribute for node in nodes for attribute in node.attribute if attribute.name in names]
    return tuple(attributes[-1].ints) or tuple(text.decode() for text in attributes[-1].strings)


@each_content
def test_classes_are_those_that_onnx_reads(build: Callable[[], bytes]) -> None:
    content = build()

    assert read_classes(content) == read_with_onnx(content)


def test_packed_integers_are_read_as_onnx_does() -> None:
    # Other writers than Python's pack repeated integers into one field: number 8, wire type 2, 3 bytes: 1, 150.
    content = build_linear((1, 150))
    packed = content.replace(bytes([0x40, 1, 0x40, 0x96, 1]), bytes([0x42, 3, 1, 0x96, 1]))

    assert packed != content
    assert read_classes(packed) == read_with_onnx(packed) == (1, 150)


@pytest.mark.parametrize("content", [b"", build_echo()], ids=["empty", "no classifier"])
def test_nothing_is_read_when_no_node_names_classes(content: bytes) -> None:
    assert read_classes(content) is None


def test_reading_is_quick_when_the_trees_are_large() -> None:
    node = helper.make_node("TreeEnsembleClassifier", ["x"], ["y", "p"], domain="ai.onnx.ml")
    values = node.attribute.add(name="nodes_values", type=onnx.AttributeProto.FLOATS)
    values.floats.extend(np.zeros(2_000_000).tolist())
    node.attribute.append(helper.make_attribute("classlabels_int64s", [5, 6]))
    content = build_graph([node], [declare("p", None, 2)], [declare("x", None, 2)])
    started = time.thread_time()  # what it takes itself, whatever runs beside it

    classes = read_classes(content)

    assert classes == (5, 6)
    assert time.thread_time() - started < 0.5


@each_small_content
def test_reading_ends_or_refuses_when_the_file_is_cut_anywhere(build: Callable[[], bytes]) -> None:
    content = build()

    for size in range(len(content)):
        read_or_refuse(content[:size])


@each_small_content
def test_reading_ends_or_refuses_when_bytes_are_changed(build: Callable[[], bytes]) -> None:
    content = build()
    chance = random.Random(0)
    for _ in range(3_000):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.choice([0, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        read_or_refuse(bytes(changed))


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.binary(max_size=200))
def test_reading_ends_or_refuses_when_the_bytes_are_any(content: bytes) -> None:
    read_or_refuse(content)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(st.binary(max_size=60))
def test_reading_ends_or_refuses_when_the_class_attribute_is_any(tail: bytes) -> None:
    name = b"classlabels_ints"
    attribute = b"\x0a" + bytes([len(name)]) + name + tail
    node = b"\x2a" + bytes([len(attribute)]) + attribute
    graph = b"\x0a" + bytes([len(node)]) + node

    read_or_refuse(b"\x3a" + bytes([len(graph)]) + graph)


def read_or_refuse(content: bytes) -> None:
    """Read the classes; refusing with ValueError is as good, any other error or type is not."""
    try:
        classes = read_classes(content)
    except ValueError:
        return
    assert classes is None or {type(name) for name in classes} in ({int}, {str})


@pytest.mark.parametrize(
    ("last", "operator"),
    [(SOFTMAX, "Softmax"), (LOGITS, "Gemm"), (helper.make_node("Tanh", ["logits"], ["other"]), None)],
    ids=["made by it", "passed on", "not made"],
)
def test_operator_is_that_which_makes_the_output(last: onnx.NodeProto, operator: str | None) -> None:
    assert read_operator(make_network(3, last).content, "p") == operator


def test_categories_are_the_encoders() -> None:
    assert read_categories(make_pipeline(zipmap=True).content) == [CITIES, BRANDS]


def test_optional_inputs_are_those_with_a_value_in_the_file() -> None:
    assert list_optional_inputs(make_mixture().content) == ["weight"]


def test_metadata_is_what_onnx_reads_when_entries_are_set() -> None:
    before = build_echo(2, classes="[1, 2]", other="kept")

    after = set_metadata(set_metadata(before, {"classes": '["größe", "b"]', "a": ""}), {"a": "x" * 100_000})

    read, expected = onnx.load_from_string(after), onnx.load_from_string(before)
    assert {entry.key: entry.value for entry in read.metadata_props} == {
        "classes": '["größe", "b"]',
        "other": "kept",
        "a": "x" * 100_000,
    }
    del read.metadata_props[:], expected.metadata_props[:]
    assert read == expected


@each_small_content
def test_metadata_is_not_set_when_the_file_is_truncated(build: Callable[[], bytes]) -> None:
    with pytest.raises(ValueError, match="truncated"):
        set_metadata(build()[:-1], {"a": "b"})
