"""Rows of every kind of feature: what is refused where, and which arrays the graph is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from app.api.predict_rows import read_features
from app.errors import InvalidRequestError
from app.serving.features import ELEMENT_TYPES, FEATURE_TEXT_LIMIT, Feature, Value, make_arrays
from app.serving.model import Model
from app.serving.probabilities import compute_softmax
from app.web.body import Row
from tests.support.family_models import LOGITS, SOFTMAX, make_mixture, make_network, make_pipeline
from tests.support.onnx_models import add_metadata, build_graph, declare

MIXTURE = make_mixture()
PEOPLE = make_pipeline(zipmap=False)
GOOD: list[Value] = [40, 1000.5, "Bern", "x"]


def find_faults(content: bytes, *rows: Row) -> list[tuple[str, str]]:
    """Return pointer and code of everything that is wrong with rows of a request."""
    signature = Model("model", "1", content).signature
    try:
        read_features(rows, signature, lambda: [f"/instances/{row}" for row in range(len(rows))])
    except InvalidRequestError as refused:
        return [(fault.pointer, fault.code) for fault in refused.faults]
    return []


VALUES: dict[str, tuple[str, object, str | None]] = {
    "float": ("tensor(float)", 1.5, None),
    "float: integer": ("tensor(float)", 3, None),
    "float: largest": ("tensor(float)", 3.4028234663852886e38, None),
    "float: too large": ("tensor(float)", 3.5e38, "out_of_range"),
    "float: too large an integer": ("tensor(float)", -(10**39), "out_of_range"),
    "float: infinite": ("tensor(float)", float("inf"), "out_of_range"),
    "float: NaN": ("tensor(float)", float("nan"), "out_of_range"),
    "float: text": ("tensor(float)", "1.5", "wrong_type"),
    "float: boolean": ("tensor(float)", True, "wrong_type"),
    "float: null": ("tensor(float)", None, "missing_value"),
    "double": ("tensor(double)", 1e308, None),
    "double: too large": ("tensor(double)", 10**309, "out_of_range"),
    "int64: largest": ("tensor(int64)", 2**63 - 1, None),
    "int64: smallest": ("tensor(int64)", -(2**63), None),
    "int64: too large": ("tensor(int64)", 2**63, "out_of_range"),
    "int64: fraction of zero": ("tensor(int64)", 3.0, None),
    "int64: fraction": ("tensor(int64)", 3.5, "wrong_type"),
    "int64: large float": ("tensor(int64)", 2.0**63, "out_of_range"),
    "int64: boolean": ("tensor(int64)", False, "wrong_type"),
    "int64: text": ("tensor(int64)", "3", "wrong_type"),
    "int32: largest": ("tensor(int32)", 2**31 - 1, None),
    "int32: too large": ("tensor(int32)", 2**31, "out_of_range"),
    "text": ("tensor(string)", "größe \U0001f600", None),
    "text: empty": ("tensor(string)", "", None),
    "text: longest": ("tensor(string)", "a" * FEATURE_TEXT_LIMIT, None),
    "text: too long": ("tensor(string)", "a" * (FEATURE_TEXT_LIMIT + 1), "out_of_range"),
    "text: NUL": ("tensor(string)", "a\0", "not_storable"),
    "text: number": ("tensor(string)", 1, "wrong_type"),
    "text: boolean": ("tensor(string)", True, "wrong_type"),
    "text: null": ("tensor(string)", None, "missing_value"),
    "boolean": ("tensor(bool)", False, None),
    "boolean: number": ("tensor(bool)", 1, "wrong_type"),
    "boolean: text": ("tensor(bool)", "true", "wrong_type"),
    "array": ("tensor(float)", [1], "wrong_type"),
}


@pytest.mark.parametrize(("type_", "value", "code"), VALUES.values(), ids=VALUES)
def test_value_is_refused_when_the_tensor_cannot_hold_it(type_: str, value: Any, code: str | None) -> None:
    fault = Feature("feature", ELEMENT_TYPES[type_], missing_allowed=False).find_fault(value)

    assert (fault and fault[0]) == code


def test_every_fault_of_every_row_is_named() -> None:
    rows: list[Row] = [
        GOOD,
        [40.5, True, "Bern", 7],
        dict(zip(PEOPLE.names, GOOD, strict=True)),
        {"age": None, "income": 1, "city": "a\0", "other": 1},
        [2**63, "1", "Bern", "x", 5],
    ]

    assert find_faults(PEOPLE.content, *rows) == [
        ("/instances/1/0", "wrong_type"),
        ("/instances/1/1", "wrong_type"),
        ("/instances/1/3", "wrong_type"),
        ("/instances/3", "missing_feature"),
        ("/instances/3/other", "unknown_feature"),
        ("/instances/3/age", "missing_value"),
        ("/instances/3/city", "not_storable"),
        ("/instances/4", "wrong_length"),
        ("/instances/4/0", "out_of_range"),
        ("/instances/4/1", "wrong_type"),
    ]


def test_only_numbers_may_be_missing_when_the_metadata_allows_it() -> None:
    content = make_mixture(missing_values="allowed").content

    faults = find_faults(content, [None, 1, True, "Bern"], [1, 1, None, None])

    assert faults == [("/instances/1/2", "missing_value"), ("/instances/1/3", "missing_value")]


def test_integers_are_exact_when_the_client_writes_them_with_a_point() -> None:
    signature = Model("people", "1", PEOPLE.content).signature

    rows = read_features([[41.0, 2, "Bern", "x"], [2**53 + 1, 2, "Bern", "x"]], signature, list)

    assert [(type(row[0]), row[0]) for row in rows] == [(int, 41), (int, 2**53 + 1)]


def test_arrays_have_the_types_and_shapes_of_the_inputs() -> None:
    model = Model("mixture", "1", MIXTURE.content)

    arrays = make_arrays(model.signature.inputs, MIXTURE.rows)

    names = [(one.name, one.type.datatype, one.shape) for one in model.signature.inputs]
    assert names == [("pair", "FP32", (-1, 2)), ("member", "BOOL", (-1,)), ("city", "BYTES", (-1, 1))]
    assert [(array.dtype, array.shape) for array in arrays] == [
        (np.dtype(np.float32), (3, 2)),
        (np.dtype(np.bool_), (3,)),
        (np.dtype(object), (3, 1)),
    ]
    assert [array.tolist() for array in arrays] == [
        [[0.25, -0.5], [1.0, -2.5], [0.0, 0.0]],
        [True, False, True],
        [["Bern"], ["Zürich"], ["Genève"]],
    ]


def test_scores_of_arrays_are_those_of_rows() -> None:
    model = Model("mixture", "1", MIXTURE.content)
    arrays = [np.array([[0.25, -0.5]], dtype=np.float32), np.array([True]), np.array([["Bern"]], dtype=object)]

    np.testing.assert_array_equal(model.score(*arrays).probabilities, model.score_rows(MIXTURE.rows[:1]).probabilities)


def build_typed(*inputs: Any, **metadata: str) -> bytes:
    """Build a model of these inputs whose answer is the same for every row of the first."""
    nodes = [
        helper.make_node("Shape", [inputs[0].name], ["shape"]),
        helper.make_node("Constant", [], ["zero"], value_ints=[0]),
        helper.make_node("Constant", [], ["two"], value_ints=[2]),
        helper.make_node("Gather", ["shape", "zero"], ["rows"]),
        helper.make_node("Concat", ["rows", "two"], ["wanted"], axis=0),
        helper.make_node(
            "ConstantOfShape", ["wanted"], ["p"], value=helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
        ),
    ]
    return build_graph(nodes, [declare("p", None, 2)], list(inputs), classes="[0, 1]", **metadata)


NAMES: dict[str, tuple[bytes, Sequence[str]]] = {
    "matrix": (build_typed(declare("x", None, 3)), ["f0", "f1", "f2"]),
    "matrix of one": (build_typed(declare("age", None, 1)), ["age"]),
    "columns": (build_typed(declare("age", None, 1), declare("size", None)), ["age", "size"]),
    "matrices": (build_typed(declare("a", None, 2), declare("b", None, 2)), ["a_0", "a_1", "b_0", "b_1"]),
    "metadata": (
        build_typed(declare("a", None, 2), declare("b", None), feature_names='["x","y","z"]'),
        ["x", "y", "z"],
    ),
    "free width": (
        build_typed(declare("a", None, None), declare("b", None), feature_names='["x","y","z"]'),
        ["x", "y", "z"],
    ),
}


@pytest.mark.parametrize(("content", "names"), NAMES.values(), ids=NAMES)
def test_features_are_named_by_metadata_or_inputs(content: bytes, names: Sequence[str]) -> None:
    assert Model("model", "1", content).signature.feature_names == tuple(names)


@pytest.mark.parametrize(
    ("metadata", "example"),
    [
        ({}, [0, 0.0, "Basel", "x"]),
        ({"example": '[30, 5e4, "Bern", "y"]'}, [30, 5e4, "Bern", "y"]),
        ({"example": '{"brand": "y", "city": "Bern", "income": 5e4, "age": 30}'}, [30, 5e4, "Bern", "y"]),
    ],
    ids=["made up", "array", "object"],
)
def test_example_is_a_row_that_the_model_takes(metadata: dict[str, str], example: list[Value]) -> None:
    model = Model("people", "1", add_metadata(PEOPLE.content, **metadata))

    assert model.example == example
    assert np.isfinite(model.score_rows([model.example]).scores).all()


def test_rows_are_run_one_by_one_when_the_batch_size_is_fixed() -> None:
    fixed, free = make_network(3, SOFTMAX, batch=1), make_network(3, SOFTMAX)

    scores = [Model("network", "1", family.content).score_rows(family.rows) for family in (fixed, free)]

    np.testing.assert_allclose(scores[0].probabilities, scores[1].probabilities, rtol=1e-6)
    np.testing.assert_array_equal(scores[0].predicted, scores[1].predicted)


def test_softmax_is_exact_when_logits_are_huge() -> None:
    logits = np.array([[1e30, 0, -1e30], [-1000.0, -1000.5, -2000], [0, 0, 0]])

    probabilities = compute_softmax(logits)

    first = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(probabilities, [[1, 0, 0], [first, 1 - first, 0], [1 / 3] * 3], rtol=1e-12)


def test_answer_is_not_finite_when_a_logit_is_not() -> None:
    model = Model("network", "1", make_network(3, LOGITS, output="logits").content)

    scores = model.score_rows([[3e38, 3e38, 3e38, 3e38], [1.0, 0.0, 0.0, 0.0]])

    assert np.isfinite(scores.probabilities).all(axis=1).tolist() == [False, True]
