"""ONNX classifiers for tests: trained with scikit-learn, or built by hand to behave in one known way."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import (
    BaggingClassifier,
    GradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
)
from sklearn.linear_model import LinearRegression, LogisticRegression

from app.serving.model import Model
from app.serving.probabilities import Float32

Classes = tuple[int, ...] | tuple[str, ...]
Kind = Literal["logistic", "forest", "boosting", "bagging", "stacking", "regression"]

FEATURES = 4
"""Width of the trained models."""

OPSETS = {"": 16, "ai.onnx.ml": 3}


def make_rows(count: int = 64, seed: int = 1) -> Float32:
    """Make feature rows float32 (count, FEATURES), the same for the same seed."""
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


@functools.cache
def train(kind: Kind, classes: Classes) -> Any:
    """Fit a scikit-learn estimator on 300 rows whose classes overlap a little."""
    rows = make_rows(300, seed=0)
    ranks = (rows[:, 0] + rows[:, 1] * rows[:, 2]).argsort().argsort()
    return _make_estimator(kind).fit(rows, np.array(classes)[ranks * len(classes) // len(rows)])


def _make_estimator(kind: Kind) -> Any:
    match kind:
        case "logistic":
            return LogisticRegression()
        case "forest":
            return RandomForestClassifier(n_estimators=8, max_depth=5, random_state=0)
        case "boosting":
            return GradientBoostingClassifier(n_estimators=8, random_state=0)
        case "bagging":
            return BaggingClassifier(n_estimators=3, random_state=0)
        case "stacking":
            estimators = [("first", LogisticRegression())]
            return StackingClassifier(estimators, LogisticRegression(), stack_method="predict_proba")
        case "regression":
            return LinearRegression()


@functools.cache
def convert(kind: Kind, classes: Classes, *, zipmap: bool | str = False) -> bytes:
    """Convert the trained estimator; outputs are a label and probabilities as a tensor or as ZipMap."""
    model = convert_sklearn(
        train(kind, classes),
        initial_types=[("features", FloatTensorType([None, FEATURES]))],
        options=None if kind == "regression" else {"zipmap": zipmap},
        target_opset=OPSETS,
    )
    return bytes(model.SerializeToString())


def add_metadata(content: bytes, **metadata: str) -> bytes:
    """Return the model with these metadata properties."""
    model = onnx.load_from_string(content)
    helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def build_graph(
    nodes: Sequence[NodeProto],
    outputs: Sequence[ValueInfoProto],
    inputs: Sequence[ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
    /,
    **metadata: str,
) -> bytes:
    """Build a model by hand, in the format that onnxruntime of 2022 and later reads."""
    opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
    graph = helper.make_graph(nodes, "by-hand", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def declare(name: str, *shape: int | str | None, type_: int = TensorProto.FLOAT) -> ValueInfoProto:
    """Declare an input or output tensor."""
    return helper.make_tensor_value_info(name, type_, shape)


def make_proper(width: int, source: str = "x") -> list[NodeProto]:
    """Make `p` from `source`: its rows that are probabilities or not finite as they are, equal shares for others."""
    shares = helper.make_tensor("shares", TensorProto.FLOAT, [1, width], [1 / width] * width)
    axes = helper.make_tensor("last", TensorProto.INT64, [1], [1])
    constants = {"shares": shares, "last": axes}
    return [
        *(helper.make_node("Constant", [], [name], value=value) for name, value in constants.items()),
        helper.make_node("Constant", [], ["one"], value_float=1.0),
        helper.make_node("Constant", [], ["near"], value_float=0.005),
        helper.make_node("Constant", [], ["nothing"], value_float=0.0),
        helper.make_node("ReduceSum", [source, "last"], ["total"], keepdims=1),
        helper.make_node("Sub", ["total", "one"], ["excess"]),
        helper.make_node("Abs", ["excess"], ["distance"]),
        helper.make_node("Greater", ["distance", "near"], ["is_off"]),
        helper.make_node("Less", [source, "nothing"], ["are_negative"]),
        helper.make_node("Cast", ["are_negative"], ["negatives"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["negatives", "last"], ["negative"], keepdims=1),
        helper.make_node("Greater", ["negative", "nothing"], ["is_negative"]),
        helper.make_node("Or", ["is_off", "is_negative"], ["is_improper"]),
        helper.make_node("IsInf", [source], ["are_infinite"]),
        helper.make_node("Cast", ["are_infinite"], ["infinities"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["infinities", "last"], ["infinite"], keepdims=1),
        helper.make_node("Greater", ["infinite", "nothing"], ["is_infinite"]),
        helper.make_node("Not", ["is_infinite"], ["is_finite"]),
        helper.make_node("And", ["is_improper", "is_finite"], ["is_replaced"]),
        helper.make_node("Where", ["is_replaced", "shares", source], ["p"]),
    ]


def build_echo(width: int = 3, **metadata: str) -> bytes:
    """Build a model without label output whose probabilities are the features, where these can be probabilities."""
    metadata = {"classes": json.dumps(list(range(width)))} | metadata
    return build_graph(
        make_proper(width),
        [declare("p", None, width)],
        [declare("x", None, width)],
        **metadata,
    )


def build_echo_with_label(width: int, label_node: NodeProto, **metadata: str) -> bytes:
    """Build an echo with one more node, which makes the int64 label `y` from the probabilities `p`."""
    return build_graph(
        [*make_proper(width), label_node],
        [declare("y", None, type_=TensorProto.INT64), declare("p", None, width)],
        [declare("x", None, width)],
        **metadata,
    )


def build_contrary(width: int, **metadata: str) -> bytes:
    """Build an echo whose label is the index of the least likely class."""
    return build_echo_with_label(width, helper.make_node("ArgMin", ["p"], ["y"], axis=1, keepdims=0), **metadata)


def build_weighing(weights: Sequence[float], **metadata: str) -> bytes:
    """Build a softmax of the features whose label is the class with the largest weighted probability."""
    table = helper.make_tensor("weights", TensorProto.FLOAT, [1, len(weights)], weights)
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("Constant", [], ["weights"], value=table),
        helper.make_node("Mul", ["p", "weights"], ["weighted"]),
        helper.make_node("ArgMax", ["weighted"], ["y"], axis=1, keepdims=0),
    ]
    width = len(weights)
    outputs = [declare("y", None, type_=TensorProto.INT64), declare("p", None, width)]
    metadata = {"classes": json.dumps(list(range(width)))} | metadata
    return build_graph(nodes, outputs, [declare("x", None, width)], **metadata)


def build_linear(classes: Classes) -> bytes:
    """Build a LinearClassifier on two features that names its classes in the graph."""
    is_text = isinstance(classes[0], str)
    node = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["y", "p"],
        domain="ai.onnx.ml",
        coefficients=[float(value) for value in range(2 * len(classes))],
        intercepts=[0.0] * len(classes),
        post_transform="SOFTMAX",
    )
    node.attribute.append(helper.make_attribute("classlabels_strings" if is_text else "classlabels_ints", classes))
    label_type = TensorProto.STRING if is_text else TensorProto.INT64
    outputs = [declare("y", None, type_=label_type), declare("p", None, len(classes))]
    return build_graph([node], outputs, [declare("x", None, 2)])


HUGE = 1e12
"""A feature above this makes a `build_breaking` model answer values that are no probabilities; no load tries that."""


def build_breaking(**metadata: str) -> bytes:
    """Build a model of two features that answers equal shares, but 2 and 2 when a feature is huge."""
    nodes = [
        helper.make_node("Constant", [], ["huge"], value_float=HUGE),
        helper.make_node("Constant", [], ["shares"], value_floats=[0.5, 0.5]),
        helper.make_node("Constant", [], ["twos"], value_floats=[2.0, 2.0]),
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[1], keepdims=1),
        helper.make_node("Greater", ["largest", "huge"], ["is_huge"]),
        helper.make_node("Where", ["is_huge", "twos", "shares"], ["p"]),
    ]
    metadata = {"classes": "[0, 1]"} | metadata
    return build_graph(nodes, [declare("p", None, 2)], [declare("x", None, 2)], **metadata)


def build_misnaming() -> bytes:
    """Build a softmax of two features with their likeliest class as the label, but 9 when a feature is huge."""
    nine = helper.make_tensor("value", TensorProto.INT64, [], [9])
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["likeliest"], axis=1, keepdims=0),
        helper.make_node("Constant", [], ["huge"], value_float=HUGE),
        helper.make_node("Constant", [], ["nine"], value=nine),
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["largest", "huge"], ["is_huge"]),
        helper.make_node("Where", ["is_huge", "nine", "likeliest"], ["y"]),
    ]
    outputs = [declare("y", None, type_=TensorProto.INT64), declare("p", None, 2)]
    return build_graph(nodes, outputs, [declare("x", None, 2)], classes="[0, 1]")


def build_imputing(**metadata: str) -> bytes:
    """Build a model of three classes that takes NaN for 0.25 and answers the features otherwise."""
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]),
        helper.make_node("Constant", [], ["filler"], value_float=0.25),
        helper.make_node("Where", ["missing", "filler", "x"], ["filled"]),
        *make_proper(3, "filled"),
    ]
    return build_graph(nodes, [declare("p", None, 3)], [declare("x", None, 3)], classes="[0, 1, 2]", **metadata)


def build_dividing() -> bytes:
    """Build a model that divides two features by their sum: not finite for a row whose sum is 0."""
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Div", ["x", "sum"], ["parts"]),
        *make_proper(2, "parts"),
    ]
    return build_graph(nodes, [declare("p", None, 2)], [declare("x", None, 2)], classes="[0, 1]")


Place = Literal["initializer", "constant", "subgraph"]


def build_external(place: Place = "initializer", location: str = "weights.bin") -> bytes:
    """Build a model whose weights, float32 (3, 3), are in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    weights.external_data.add(key="length", value="36")
    multiply = helper.make_node("MatMul", ["x", "w"], ["p"])
    inner = helper.make_graph([multiply], "inner", [], [declare("p", None, 3)], [weights])
    always = helper.make_node("Constant", [], ["always"], value=helper.make_tensor("always", TensorProto.BOOL, [], [1]))
    nodes = {
        "initializer": [multiply],
        "constant": [helper.make_node("Constant", [], ["w"], value=weights), multiply],
        "subgraph": [always, helper.make_node("If", ["always"], ["p"], then_branch=inner, else_branch=inner)],
    }
    model = onnx.load_from_string(build_graph(nodes[place], [declare("p", None, 3)], [declare("x", None, 3)]))
    if place == "initializer":
        model.graph.initializer.append(weights)
    return bytes(model.SerializeToString())


def build_fragile() -> bytes:
    """Build an echo of two features whose run fails when a row's first feature is 5 or more."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [5], [0.0] * 5)
    nodes = [
        helper.make_node("Constant", [], ["table"], value=table),
        helper.make_node("Cast", ["x"], ["indices"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "indices"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["same"]),
        *make_proper(2, "same"),
    ]
    return build_graph(nodes, [declare("p", None, 2)], [declare("x", None, 2)], classes="[0, 1]")


def build_slow(layers: int = 60, size: int = 512) -> bytes:
    """Build an echo of two features that first multiplies large matrices: some milliseconds for one row."""
    one = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0 / size])
    nodes = [
        helper.make_node("Constant", [], ["first_shape"], value_ints=[2, size]),
        helper.make_node("Constant", [], ["shape"], value_ints=[size, size]),
        helper.make_node("ConstantOfShape", ["first_shape"], ["first"], value=one),
        helper.make_node("ConstantOfShape", ["shape"], ["weights"], value=one),
        helper.make_node("MatMul", ["x", "first"], ["h0"]),
        *(helper.make_node("MatMul", [f"h{layer}", "weights"], [f"h{layer + 1}"]) for layer in range(layers)),
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("ReduceSum", [f"h{layers}", "axes"], ["sum"], keepdims=1),
        helper.make_node("Constant", [], ["zero"], value_float=0.0),
        helper.make_node("Mul", ["sum", "zero"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["same"]),
        *make_proper(2, "same"),
    ]
    return build_graph(nodes, [declare("p", None, 2)], [declare("x", None, 2)], classes="[0, 1]")


def write_model(directory: Path, content: bytes, name: str = "model", version: str = "1") -> Path:
    """Write the file into a repository and return its path."""
    file = directory / name / version / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def name_predictions(model: Model, rows: Float32) -> list[int | str]:
    """Score rows and return the predicted classes by name."""
    return [model.signature.classes[index] for index in model.score(rows).predicted.tolist()]
