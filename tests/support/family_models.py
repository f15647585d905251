"""One model of each family that is served as its library exports it, with rows and what that answers for them."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from app.serving.features import Value
from app.serving.graph import set_metadata
from tests.support.onnx_models import FEATURES, OPSETS, build_graph, convert, declare, make_rows, train

Row = Sequence[Value] | Mapping[str, Value]
Float64 = NDArray[np.float64]

MADE = Path(__file__).parents[1] / "families"
"""Models of libraries that are too large for the tests' environment; `make.py` there made them and their answers."""


@dataclass(frozen=True)
class Family:
    """A model, rows, and what its library says of them: probabilities (n, n_classes) in the order of `classes`."""

    content: bytes
    rows: Sequence[Sequence[Value]]
    classes: Sequence[int | str]
    probabilities: Float64
    names: Sequence[str] = tuple(f"f{index}" for index in range(FEATURES))

    @property
    def predictions(self) -> list[int | str]:
        """The most likely class of each row."""
        return [self.classes[index] for index in self.probabilities.argmax(axis=1).tolist()]


def read_made(name: str, *, missing: bool = False) -> Family:
    """Read a model that `make.py` has made, and the rows with, or without, missing values."""
    answers = json.loads((MADE / "answers.json").read_text())
    answer, content = answers[name], (MADE / f"{name}.onnx").read_bytes()
    chosen = [index for index, row in enumerate(answers["rows"]) if (None in row) == missing]
    rows, probabilities = [answers["rows"][index] for index in chosen], np.array(answer["probabilities"])[chosen]
    if missing:
        content = set_metadata(content, {"missing_values": "allowed"})
    return Family(content, rows, answer["classes"], probabilities)


def make_scikit_learn(kind: Any, classes: Any, *, zipmap: bool | str) -> Family:
    """Take a plain scikit-learn estimator."""
    rows = make_rows(30)
    probabilities = train(kind, classes).predict_proba(rows)
    return Family(convert(kind, classes, zipmap=zipmap), rows.tolist(), classes, probabilities)


CITIES, BRANDS = ("Basel", "Bern", "Genève"), ("x", "y")
COLUMNS = ("age", "income", "city", "brand")


def make_people(count: int, seed: int) -> list[list[Value]]:
    """Make rows of an integer, a number and two texts."""
    generator = np.random.default_rng(seed)
    return [
        [
            int(generator.integers(18, 80)),
            float(np.float32(generator.normal(3e4, 1e4))),
            str(generator.choice(CITIES)),
            str(generator.choice(BRANDS)),
        ]
        for _ in range(count)
    ]


@functools.cache
def train_pipeline() -> Any:
    """Fit scaling, one-hot encoding that refuses unknown categories (its default), and logistic regression."""
    rows: NDArray[Any] = np.array(make_people(300, 0), dtype=object)
    columns = ColumnTransformer([("numbers", StandardScaler(), [0, 1]), ("texts", OneHotEncoder(), [2, 3])])
    labels = np.where(rows[:, 0] + rows[:, 1] / 1000 + 10 * (rows[:, 2] == "Bern") > 80, "good", "bad")
    return Pipeline([("columns", columns), ("classifier", LogisticRegression(max_iter=1000))]).fit(rows, labels)


def make_pipeline(*, zipmap: bool) -> Family:
    """Convert the pipeline: an input per column."""
    pipeline, rows = train_pipeline(), make_people(30, 1)
    types = [Int64TensorType, FloatTensorType, StringTensorType, StringTensorType]
    model = convert_sklearn(
        pipeline,
        initial_types=[(name, type_([None, 1])) for name, type_ in zip(COLUMNS, types, strict=True)],
        options={"zipmap": zipmap},
        target_opset=OPSETS,
    )
    probabilities = pipeline.predict_proba(np.array(rows, dtype=object))
    return Family(bytes(model.SerializeToString()), rows, pipeline.classes_.tolist(), probabilities, COLUMNS)


def make_typed(tensor_type: Any, dtype: type) -> Family:
    """Convert a logistic regression with a matrix of another type: doubles are answered as doubles."""
    rows: NDArray[Any] = (make_rows(300, seed=0) * 10).astype(dtype)
    estimator = LogisticRegression(max_iter=1000).fit(rows, np.where(rows[:, 0] > rows[:, 1], "yes", "no"))
    model = convert_sklearn(
        estimator,
        initial_types=[("x", tensor_type([None, FEATURES]))],
        options={"zipmap": False},
        target_opset=OPSETS,
    )
    chosen = rows[:30]
    return Family(bytes(model.SerializeToString()), chosen.tolist(), ("no", "yes"), estimator.predict_proba(chosen))


def make_network(outputs: int, *last: NodeProto, batch: int | None = None, **metadata: str) -> Family:
    """Build a network as PyTorch's exporter does, Gemm and Relu and Gemm to `logits`, and the nodes that make `p`."""
    generator = np.random.default_rng(2)
    weights = [generator.normal(size=(FEATURES, 8)), generator.normal(size=(8, outputs))]
    biases = [generator.normal(size=8), generator.normal(size=outputs)]
    constants = [
        helper.make_node("Constant", [], [f"{name}{layer}"], value=_spell(array))
        for name, arrays in (("w", weights), ("b", biases))
        for layer, array in enumerate(arrays)
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["logits"]),
    ]
    is_vector = any(node.op_type == "Squeeze" for node in last)
    answer = declare("p", batch) if is_vector else declare("p", batch, outputs)
    content = build_graph([*constants, *nodes, *last], [answer], [declare("x", batch, FEATURES)], **metadata)
    rows = make_rows(30)
    logits = np.maximum(rows.astype(np.float64) @ weights[0] + biases[0], 0) @ weights[1] + biases[1]
    powers = np.exp(np.hstack([np.zeros_like(logits), logits]) if outputs == 1 else logits)
    return Family(content, rows.tolist(), tuple(range(max(outputs, 2))), powers / powers.sum(axis=1, keepdims=True))


def _spell(array: Float64) -> TensorProto:
    return helper.make_tensor("value", TensorProto.FLOAT, array.shape, array.astype(np.float32).ravel())


SOFTMAX = helper.make_node("Softmax", ["logits"], ["p"])
SIGMOID = helper.make_node("Sigmoid", ["logits"], ["p"])
LOGITS = helper.make_node("Identity", ["logits"], ["p"])
VECTOR = (helper.make_node("Sigmoid", ["logits"], ["s"]), helper.make_node("Squeeze", ["s"], ["p"]))


def make_mixture(**metadata: str) -> Family:
    """Build a model of a matrix of two numbers, a boolean column as a vector, a text column, and an optional weight."""
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [1], [2.0])
    nodes = [
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("ReduceSum", ["pair", "axes"], ["sum"], keepdims=1),
        helper.make_node("Mul", ["sum", "weight"], ["weighted"]),
        helper.make_node("Cast", ["member"], ["flag"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["flag", "axes"], ["flags"]),
        helper.make_node(
            "LabelEncoder",
            ["city"],
            ["bonus"],
            domain="ai.onnx.ml",
            keys_strings=list(CITIES),
            values_floats=[0.5, 1.5, -1.0],
            default_float=0.0,
        ),
        helper.make_node("Add", ["weighted", "flags"], ["first"]),
        helper.make_node("Add", ["first", "bonus"], ["logits"]),
        SIGMOID,
    ]
    inputs = [
        declare("pair", None, 2),
        declare("member", None, type_=TensorProto.BOOL),
        declare("city", None, 1, type_=TensorProto.STRING),
        declare("weight", 1),
    ]
    content = build_graph(nodes, [declare("p", None, 1)], inputs, [weight], **metadata)
    rows: list[list[Value]] = [[0.25, -0.5, True, "Bern"], [1.0, -2.5, False, "Zürich"], [0, 0, True, "Genève"]]
    logits = np.array([2 * -0.25 + 1 + 1.5, 2 * -1.5 + 0 + 0, 0 + 1 - 1.0])
    chance = 1 / (1 + np.exp(-logits))
    names = ("pair_0", "pair_1", "member", "city")
    return Family(content, rows, (0, 1), np.stack([1 - chance, chance], axis=1), names)


FAMILIES: dict[str, Callable[[], Family]] = {
    "scikit-learn-logistic": lambda: make_scikit_learn("logistic", ("no", "yes"), zipmap=False),
    "scikit-learn-forest-zipmap": lambda: make_scikit_learn("forest", ("ash", "beech", "cherry"), zipmap=True),
    "scikit-learn-columns": lambda: make_scikit_learn("logistic", ("ash", "beech"), zipmap="columns"),
    "scikit-learn-boosting": lambda: make_scikit_learn("boosting", (1, 2, 3), zipmap=False),
    "pipeline": lambda: make_pipeline(zipmap=False),
    "pipeline-zipmap": lambda: make_pipeline(zipmap=True),
    "doubles": lambda: make_typed(DoubleTensorType, np.float64),
    "integers": lambda: make_typed(Int64TensorType, np.int64),
    "lightgbm-zipmap": lambda: read_made("lightgbm-zipmap"),
    "lightgbm-texts": lambda: read_made("lightgbm-texts"),
    "xgboost": lambda: read_made("xgboost"),
    "xgboost-three": lambda: read_made("xgboost-three"),
    "catboost": lambda: read_made("catboost"),
    "catboost-three": lambda: read_made("catboost-three"),
    "softmax": lambda: make_network(3, SOFTMAX),
    "sigmoid": lambda: make_network(1, SIGMOID),
    "sigmoid-vector": lambda: make_network(1, *VECTOR),
    "logits": lambda: make_network(3, LOGITS, output="logits"),
    "one-logit": lambda: make_network(1, LOGITS, output="logits"),
    "batch-of-one": lambda: make_network(3, SOFTMAX, batch=1),
    "mixture": make_mixture,
}
"""Names that a model in a repository may have."""
