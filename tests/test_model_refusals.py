"""Models that cannot be served stop the start with one line that names the file and what is wrong with it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.errors import StartupError
from app.serving.loading import load_models
from tests.support.onnx_models import (
    Place,
    add_metadata,
    build_contrary,
    build_echo,
    build_external,
    build_graph,
    build_linear,
    convert,
    declare,
    write_model,
)

IDENTITY = helper.make_node("Identity", ["x"], ["p"])


def read_refusal(tmp_path: Path, content: bytes) -> str:
    """Start on this one file; return why it is refused, having checked that it is one line which names the file."""
    file = write_model(tmp_path, content)
    with pytest.raises(StartupError) as refusal:
        load_models(tmp_path, None)
    line = str(refusal.value)
    assert line.startswith(f"{file}: ")
    assert line.isprintable()
    assert len(line) < len(str(file)) + 1000
    return line.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    "content",
    [b"\0" * 100, b"PK\x03\x04 a zip file", b"not a model " * 50, build_echo()[:-10]],
    ids=["zeros", "zip", "text", "truncated"],
)
def test_start_is_refused_when_the_file_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    assert "onnxruntime cannot load it" in read_refusal(tmp_path, content)


def test_start_is_refused_when_the_file_is_empty(tmp_path: Path) -> None:
    assert read_refusal(tmp_path, b"") == "is empty"


def test_start_is_refused_when_the_file_is_larger_than_any_model(tmp_path: Path) -> None:
    file = write_model(tmp_path, b"x")
    os.truncate(file, 2 * 1024**3)  # a hole: nothing is written

    with pytest.raises(StartupError, match=r"has 2,147,483,648 bytes, an ONNX file has at most 2,147,483,647$"):
        load_models(tmp_path, None)


def test_start_is_refused_when_reading_the_file_would_not_end(tmp_path: Path) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    os.mkfifo(tmp_path / "model" / "1" / "model.onnx")

    with pytest.raises(StartupError, match=r"model\.onnx: cannot be read: not a regular file$"):
        load_models(tmp_path, None)


@pytest.mark.parametrize("domain", ["", "my.domain"], ids=["no such operator", "custom library"])
def test_start_is_refused_when_an_operator_is_unknown(tmp_path: Path, domain: str) -> None:
    node = helper.make_node("MyOperator", ["x"], ["p"], domain=domain)
    model = onnx.load_from_string(build_graph([node], [declare("p", None, 3)], [declare("x", None, 3)]))
    model.opset_import.append(helper.make_opsetid("my.domain", 1))

    assert "onnxruntime cannot load it" in read_refusal(tmp_path, model.SerializeToString())


def test_start_is_refused_when_a_trained_model_is_cut_within_its_graph(tmp_path: Path) -> None:
    content = convert("logistic", ("no", "yes"))

    for index, size in enumerate(np.linspace(1, len(content) * 9 // 10, 40, dtype=int).tolist()):
        read_refusal(tmp_path / str(index), content[:size])


INPUTS = {
    "image": ([declare("x", None, 3, 32, 32)], "put reshaping and casting into the graph"),
    "scalar": ([declare("x")], "put reshaping and casting into the graph"),
    "bytes": ([declare("x", None, 3, type_=TensorProto.UINT8)], "put reshaping and casting into the graph"),
    "sequence": (
        [helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [None, 3])],
        "put reshaping and casting into the graph",
    ),
    "eight rows": ([declare("x", 8, 3)], "export with a free first dimension"),
    "vector of one row": ([declare("x", 3)], "export with a free first dimension"),
    "free width": ([declare("x", None, None)], 'add metadata "feature_names"'),
    "two free widths": ([declare("x", None, None), declare("z", None, None)], "export with a fixed number of features"),
    "equal names": ([declare("x", None, 2), declare("x_1", None, 1)], "two features with the same name"),
    "no width": ([declare("x", None, 0)], "there are no features"),
    "none": ([], "there are no features"),
}


@pytest.mark.parametrize(("inputs", "reason"), INPUTS.values(), ids=INPUTS)
def test_start_is_refused_when_the_inputs_are_not_rows(
    tmp_path: Path, inputs: list[onnx.ValueInfoProto], reason: str
) -> None:
    node = helper.make_node("Constant", [], ["p"], value=numpy_helper.from_array(np.zeros((1, 2), np.float32), "p"))
    content = build_graph([node], [declare("p", None, 2)], inputs, classes="[0, 1]")

    assert reason in read_refusal(tmp_path, content)


OUTPUTS: dict[str, Callable[[], bytes]] = {
    "label alone": lambda: build_graph(
        [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
        [declare("y", None, type_=TensorProto.INT64)],
        [declare("x", None, 3)],
    ),
    "two matrices": lambda: build_graph(
        [IDENTITY, helper.make_node("Neg", ["x"], ["q"])],
        [declare("p", None, 3), declare("q", None, 3)],
        [declare("x", None, 3)],
    ),
    "rank 3": lambda: build_graph(
        [
            helper.make_node("Unsqueeze", ["x", "axes"], ["p"]),
            helper.make_node("Constant", [], ["axes"], value_ints=[2]),
        ][::-1],
        [declare("p", None, 3, 1)],
        [declare("x", None, 3)],
    ),
}


@pytest.mark.parametrize("build", OUTPUTS.values(), ids=OUTPUTS)
def test_start_is_refused_when_there_are_no_probabilities(tmp_path: Path, build: Callable[[], bytes]) -> None:
    assert "supported is a label (integers, texts, booleans) with probabilities" in read_refusal(tmp_path, build())


def build_scores(*nodes: onnx.NodeProto, width: int | None, **metadata: str) -> bytes:
    """Build a model of three features whose output `p` these nodes make."""
    shape = (None,) if width is None else (None, width)
    return build_graph(nodes, [declare("p", *shape)], [declare("x", None, 3)], **metadata)


NOT_CERTAIN = "which may not be probabilities"
MAXIMUM = helper.make_node("ReduceMax", ["x"], ["p"], axes=[1], keepdims=0)

UNCERTAIN: dict[str, tuple[Callable[[], bytes], str]] = {
    "regressor": (lambda: convert("regression", (0, 1)), NOT_CERTAIN),
    "embedding": (lambda: build_scores(helper.make_node("Tanh", ["x"], ["p"]), width=3), NOT_CERTAIN),
    "vector": (lambda: build_scores(MAXIMUM, width=None), NOT_CERTAIN),
    "several labels at once": (
        lambda: build_scores(helper.make_node("Sigmoid", ["x"], ["p"]), width=3),
        "a row can have several classes, which is not supported",
    ),
    "negative": (
        lambda: build_scores(
            helper.make_node("Constant", [], ["one"], value_float=1.0),
            helper.make_node("Sub", ["x", "one"], ["p"]),
            width=3,
            classes="[0, 1, 2]",
        ),
        'add metadata "output": logits',
    ),
    "logits": (
        lambda: build_scores(
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Add", ["x", "two"], ["p"]),
            width=3,
            classes="[0, 1, 2]",
        ),
        'add metadata "output": logits',
    ),
    "column for three classes": (lambda: build_scores(MAXIMUM, width=None, classes="[0, 1, 2]"), "but 1 columns"),
}


@pytest.mark.parametrize(("build", "reason"), UNCERTAIN.values(), ids=UNCERTAIN)
def test_start_is_refused_when_it_may_be_no_classifier(tmp_path: Path, build: Callable[[], bytes], reason: str) -> None:
    assert reason in read_refusal(tmp_path, build())


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "one class": (lambda: build_echo(1, classes='["only"]'), "supported are two or more"),
    "equal classes in the graph": (lambda: build_linear(("a", "a")), "supported are two or more different ones"),
    "unknown classes": (lambda: build_contrary(3), 'add metadata "classes"'),
    "free widths": (
        lambda: build_graph([IDENTITY], [declare("p", None, "k")], [declare("x", None, "k")], classes="[0, 1]"),
        'add metadata "feature_names"',
    ),
    "width found at run time": (
        lambda: build_graph(
            [IDENTITY],
            [declare("p", None, "k")],
            [declare("x", None, "k")],
            classes="[0, 1]",
            feature_names='["a", "b", "c"]',
        ),
        "probabilities have the shape (1, 3), expected is (1, 2)",
    ),
    "integer label for text classes": (lambda: build_contrary(2, classes='["a", "b"]'), "labels are"),
    "ZipMap without such a class": (
        lambda: add_metadata(convert("forest", (1, 2, 3), zipmap=True), classes="[1, 2, 9]"),
        "class",
    ),
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED)
def test_start_is_refused_when_the_graph_does_not_fit(tmp_path: Path, build: Callable[[], bytes], reason: str) -> None:
    assert reason in read_refusal(tmp_path, build())


@pytest.mark.parametrize("place", get_args(Place))
@pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "{absolute}", "../{directory}/weights.bin"])
def test_start_is_refused_when_weights_are_in_another_file_though_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place, location: str
) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(36))
    monkeypatch.chdir(tmp_path)  # where onnxruntime looks unless told otherwise
    spelt = location.format(absolute=tmp_path / "weights.bin", directory=tmp_path.name)

    assert "its weights are in another file" in read_refusal(tmp_path / "models", build_external(place, spelt))


LONG, NUL = "a" * 201, "a\0b"

METADATA: dict[str, tuple[int, dict[str, str], str]] = {
    "classes: no JSON": (3, {"classes": "[0, 1"}, '"classes" is not JSON'),
    "classes: empty": (3, {"classes": ""}, '"classes" is not JSON'),
    "classes: nested too deeply": (3, {"classes": "[" * 100_000}, '"classes" is not JSON'),
    "classes: object": (3, {"classes": "{}"}, "not a JSON array"),
    "classes: booleans": (2, {"classes": "[false, true]"}, "not a JSON array"),
    "classes: fractions": (2, {"classes": "[0.5, 1.5]"}, "not a JSON array"),
    "classes: mixed": (2, {"classes": '[0, "1"]'}, "mixes integers and texts"),
    "classes: twice the same": (2, {"classes": "[1, 1]"}, "different ones"),
    "classes: too few": (3, {"classes": "[0, 1]"}, "there are 2 classes, but 3 columns"),
    "classes: too many": (3, {"classes": "[0, 1, 2, 3]"}, "there are 4 classes, but 3 columns"),
    "classes: NUL": (2, {"classes": json.dumps([NUL, "c"])}, "not a JSON array"),
    "classes: lone surrogate": (2, {"classes": r'["\ud800", "c"]'}, "not a JSON array"),
    "classes: empty text": (2, {"classes": '["", "c"]'}, "not a JSON array"),
    "classes: too long": (2, {"classes": json.dumps([LONG, "c"])}, "texts up to 200"),
    "classes: too large": (2, {"classes": f"[0, {2**63}]"}, "not a JSON array"),
    "classes: 5000 digits": (2, {"classes": f"[0, {'9' * 5000}]"}, '"classes" is not JSON'),
    "feature_names: no JSON": (3, {"feature_names": "a,b,c"}, '"feature_names" is not JSON'),
    "feature_names: too few": (3, {"feature_names": '["a", "b"]'}, "2 names for 3 features"),
    "feature_names: too many": (3, {"feature_names": '["a", "b", "c", "d"]'}, "4 names for 3 features"),
    "feature_names: none": (3, {"feature_names": "[]"}, "0 names for 3 features"),
    "feature_names: twice the same": (3, {"feature_names": '["a", "b", "a"]'}, "two features with the same name"),
    "feature_names: NUL": (3, {"feature_names": json.dumps(["a", "b", NUL])}, "not a JSON array"),
    "feature_names: too long": (3, {"feature_names": json.dumps(["a", "b", LONG])}, "texts up to 200"),
    "positive_class: unknown": (2, {"positive_class": "2"}, "the classes are [0, 1]"),
    "positive_class: no JSON": (2, {"positive_class": "yes"}, '"positive_class" is not JSON'),
    "positive_class: boolean": (2, {"positive_class": "true"}, "the classes are [0, 1]"),
    "positive_class: of three": (3, {"positive_class": "1"}, "needs two classes, this model has 3"),
    "decision_threshold: too high": (2, {"decision_threshold": "1.01"}, "allowed is 0 to 1"),
    "decision_threshold: negative": (2, {"decision_threshold": "-0.1"}, "allowed is 0 to 1"),
    "decision_threshold: NaN": (2, {"decision_threshold": "nan"}, "not a finite number"),
    "decision_threshold: no number": (2, {"decision_threshold": "half"}, "not a finite number"),
    "decision_threshold: of three": (3, {"decision_threshold": "0.5"}, "for two classes"),
    "missing_values: unknown": (2, {"missing_values": "yes"}, "allowed is refused or allowed"),
    "output: unknown": (2, {"output": "log"}, "allowed is probabilities or logits"),
    "example: no JSON": (2, {"example": "1, 2"}, '"example" is not JSON'),
    "example: too short": (2, {"example": "[1]"}, "neither a JSON array of 2 values"),
    "example: wrong type": (2, {"example": '[1, "2"]'}, "feature 'f1': expected number"),
    "example: no such names": (2, {"example": '{"a": 1}'}, "feature 'f0': null is not allowed, expected number"),
    "example: NaN": (2, {"example": "[1, NaN]"}, "feature 'f1': the number does not fit"),
    "training_f1: infinite": (2, {"training_f1": "inf"}, "not a finite number"),
}


@pytest.mark.parametrize(("width", "metadata", "reason"), METADATA.values(), ids=METADATA)
def test_start_is_refused_when_the_metadata_is_wrong(
    tmp_path: Path, width: int, metadata: dict[str, str], reason: str
) -> None:
    assert reason in read_refusal(tmp_path, build_echo(width, **metadata))


@pytest.mark.parametrize("name", [NUL, LONG, "", "a\nb"], ids=["NUL", "too long", "empty", "line break"])
def test_start_is_refused_when_the_graph_has_a_class_that_cannot_be_stored(tmp_path: Path, name: str) -> None:
    assert "class" in read_refusal(tmp_path, build_linear((name, "other")))


BROKEN_TEXTS: dict[str, bytes] = {
    "metadata": build_echo(description="TO BREAK"),
    "dimension": build_graph([IDENTITY], [declare("p", None, 3)], [declare("x", "TO BREAK", 3)]),
    "output": build_graph(
        [helper.make_node("Identity", ["x"], ["TO BREAK"])], [declare("TO BREAK", None, 3)], [declare("x", None, 3)]
    ),
    "class": build_linear(("TO BREAK", "other")),
}


@pytest.mark.parametrize("content", BROKEN_TEXTS.values(), ids=BROKEN_TEXTS)
def test_start_is_refused_when_a_text_is_not_utf_8(tmp_path: Path, content: bytes) -> None:
    read_refusal(tmp_path, content.replace(b"TO BREAK", b"TO\xff\xfeREAK"))
