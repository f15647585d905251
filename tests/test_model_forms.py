"""The forms that exported files have, beside those of the families: each answers as scikit-learn or numpy does."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier, LocalOutlierFactor
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import OneClassSVM
from sklearn.tree import DecisionTreeClassifier

from app.errors import StartupError
from app.serving.model import Model
from tests.support.onnx_models import OPSETS, Classes, add_metadata, build_graph, declare, make_rows

ROWS = make_rows(200, seed=0)
RANKS = (ROWS[:, 0] + ROWS[:, 1] * ROWS[:, 2]).argsort().argsort()


def label(names: Sequence[Any]) -> NDArray[Any]:
    """Give each row one of these classes."""
    return np.array(names)[RANKS * len(names) // len(ROWS)]


def export(classifier: Any, **options: Any) -> bytes:
    """Export a fitted classifier with skl2onnx."""
    return bytes(to_onnx(classifier, ROWS[:1], options=options, target_opset=OPSETS).SerializeToString())


def check_as_scikit_learn(content: bytes, classifier: Any) -> Model:
    """Check that a model answers as the classifier does; return it."""
    model = Model("model", "1", content)
    scores = model.score(ROWS)
    np.testing.assert_allclose(scores.probabilities, classifier.predict_proba(ROWS), atol=1e-5)
    predicted = [model.signature.classes[index] for index in scores.predicted]
    assert predicted == classifier.predict(ROWS).tolist()
    return model


def move_classes(content: bytes, place: str) -> bytes:
    """Keep the array of classes as other writers do: as raw data, or in a Constant node."""
    model = onnx.load_from_string(content)
    (tensor,) = [one for one in model.graph.initializer if one.name == "classes"]
    names = numpy_helper.to_array(tensor)
    if place == "raw data":
        tensor.CopyFrom(numpy_helper.from_array(names, "classes"))
    else:
        model.graph.initializer.remove(tensor)
        attributes: dict[str, dict[str, Any]] = {
            "Constant": {"value": helper.make_tensor("value", tensor.data_type, names.shape, names.tolist())},
            "Constant of integers": {"value_ints": [int(name) for name in names] if names.dtype.kind != "O" else []},
            "Constant of texts": {"value_strings": [str(name) for name in names]},
        }
        model.graph.node.insert(0, helper.make_node("Constant", [], ["classes"], **attributes[place]))
    return bytes(model.SerializeToString())


ARRAYS: dict[str, tuple[Classes, str]] = {
    "integers as raw data": ((3, 5, 9), "raw data"),
    "integers in a Constant": ((3, 5, 9), "Constant"),
    "integers in a Constant of integers": ((3, 5, 9), "Constant of integers"),
    "texts in a Constant": (("a", "b", "c"), "Constant"),
    "texts in a Constant of texts": (("a", "b", "c"), "Constant of texts"),
}


@pytest.mark.parametrize(("names", "place"), ARRAYS.values(), ids=ARRAYS)
def test_classes_are_found_where_writers_keep_them(names: Classes, place: str) -> None:
    classifier = MLPClassifier((5,), random_state=0, max_iter=2000, tol=0.01).fit(ROWS, label(names))

    check_as_scikit_learn(move_classes(export(classifier, zipmap=False), place), classifier)


@pytest.mark.parametrize(
    "names",
    [(False, True), (0.0, 1.0, 2.0), (-1.0, 1.0), ("no", "yes")],
    ids=["booleans", "floats", "two floats", "texts"],
)
@pytest.mark.parametrize("kind", [LogisticRegression, KNeighborsClassifier, DecisionTreeClassifier])
@pytest.mark.parametrize("zipmap", [False, True, "columns"])
def test_classes_of_every_type_are_scikit_learns(names: Sequence[Any], kind: Any, zipmap: object) -> None:
    classifier = kind().fit(ROWS, label(names))

    check_as_scikit_learn(export(classifier, zipmap=zipmap), classifier)


@pytest.mark.parametrize("names", [(0, 1), (3, 5, 9), ("a b", "b"), ("1", "2", "10")], ids=str)
def test_columns_of_zipmap_are_scikit_learns_probabilities(names: Classes) -> None:
    classifier = LogisticRegression().fit(ROWS, label(names))

    model = check_as_scikit_learn(export(classifier, zipmap="columns"), classifier)

    assert model.signature.classes == tuple(classifier.classes_.tolist())


def test_columns_of_zipmap_are_found_by_name_when_they_are_in_another_order() -> None:
    classifier = LogisticRegression().fit(ROWS, label((0, 1, 2)))
    exported = onnx.load_from_string(export(classifier, zipmap="columns"))
    outputs = list(exported.graph.output)
    del exported.graph.output[:]
    exported.graph.output.extend(outputs[::-1])

    check_as_scikit_learn(exported.SerializeToString(), classifier)


@pytest.mark.parametrize("names", [(3, 5, 9), ("a", "b", "c")], ids=["integers", "texts"])
def test_output_of_all_class_labels_is_left_out(names: Classes) -> None:
    classifier = LogisticRegression().fit(ROWS, label(names))

    check_as_scikit_learn(export(classifier, zipmap=False, output_class_labels=True), classifier)


def test_leaves_and_paths_of_trees_are_left_out() -> None:
    classifier = DecisionTreeClassifier(max_depth=4).fit(ROWS, label((3, 5, 9)))

    check_as_scikit_learn(export(classifier, zipmap=False, decision_leaf=True, decision_path=True), classifier)


LABELS = {
    "int32": TensorProto.INT32,
    "float": TensorProto.FLOAT,
    "double": TensorProto.DOUBLE,
    "bool": TensorProto.BOOL,
}


@pytest.mark.parametrize("type_", LABELS.values(), ids=LABELS)
def test_label_of_another_type_is_scikit_learns(type_: int) -> None:
    classifier = MLPClassifier((5,), random_state=0, max_iter=2000, tol=0.01).fit(ROWS, label((0, 1)))
    exported = onnx.load_from_string(export(classifier, zipmap=False))
    exported.graph.node.append(helper.make_node("Cast", ["label"], ["typed"], to=type_))
    exported.graph.output[0].CopyFrom(declare("typed", None, type_=type_))

    model = check_as_scikit_learn(exported.SerializeToString(), classifier)

    assert model.signature.label_output == "typed"


ENCODERS: dict[str, tuple[int, dict[str, Any]]] = {
    "attributes": (3, {"keys_int64s": [2, 0, 1], "values_strings": ["cherry", "ash", "beech"]}),
    "tensors": (
        4,
        {
            "keys_tensor": numpy_helper.from_array(np.array([2, 0, 1]), "keys"),
            "values_tensor": numpy_helper.from_array(np.array(["cherry", "ash", "beech"], dtype=object), "values"),
            "default_tensor": numpy_helper.from_array(np.array(["?"], dtype=object), "default"),
        },
    ),
}


@pytest.mark.parametrize(("version", "tables"), ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("before", ["classifier", "index"])
def test_classes_are_those_of_a_label_encoder(before: str, version: int, tables: dict[str, Any]) -> None:
    numbered = DecisionTreeClassifier(max_depth=4).fit(ROWS, label((0, 1, 2)))
    named = DecisionTreeClassifier(max_depth=4).fit(ROWS, label(("ash", "beech", "cherry")))
    exported = onnx.load_from_string(export(numbered, zipmap=False))
    exported.opset_import[0].version = max(exported.opset_import[0].version, 1)
    for opset in exported.opset_import:
        opset.version = version if opset.domain == "ai.onnx.ml" else opset.version
    number = "label"
    if before == "index":
        exported.graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["index"], axis=1, keepdims=0))
        number = "index"
    exported.graph.node.append(helper.make_node("LabelEncoder", [number], ["name"], domain="ai.onnx.ml", **tables))
    exported.graph.output[0].CopyFrom(declare("name", None, type_=TensorProto.STRING))

    model = check_as_scikit_learn(exported.SerializeToString(), named)

    assert model.signature.classes == ("ash", "beech", "cherry")


def build_half(*, is_softmax: bool, **metadata: str) -> tuple[bytes, NDArray[Any]]:
    """Build a linear model in half precision; return it with its weights (4, 3)."""
    weights = np.random.default_rng(3).normal(size=(4, 3)).astype(np.float16)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("Softmax" if is_softmax else "Identity", ["logits"], ["p"]),
    ]
    half = TensorProto.FLOAT16
    outputs, inputs = [declare("p", None, 3, type_=half)], [declare("x", None, 4, type_=half)]
    return build_graph(nodes, outputs, inputs, [numpy_helper.from_array(weights, "w")], **metadata), weights


@pytest.mark.parametrize("is_softmax", [True, False], ids=["softmax", "logits"])
def test_half_precision_is_numpys(is_softmax: bool) -> None:
    metadata = {} if is_softmax else {"output": "logits"}
    content, weights = build_half(is_softmax=is_softmax, **metadata)
    model = Model("half", "1", content)

    scores = model.score_rows(ROWS[:20].tolist())

    logits = ROWS[:20].astype(np.float16).astype(np.float64) @ weights.astype(np.float64)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(scores.probabilities, powers / powers.sum(axis=1, keepdims=True), atol=5e-3)
    assert scores.probabilities.dtype == np.float32
    np.testing.assert_allclose(scores.probabilities.sum(axis=1), 1, atol=2e-3)


def test_number_that_half_precision_cannot_hold_is_refused() -> None:
    content, _ = build_half(is_softmax=True)

    (feature, *_) = Model("half", "1", content).signature.features

    assert feature.find_fault(65504.0) is None
    assert feature.find_fault(65536.0) == ("out_of_range", "the number does not fit in float16")


def build_two_heads(**metadata: str) -> bytes:
    """Build a model of two outputs of floats: the softmax of the features, and its order reversed."""
    reverse = numpy_helper.from_array(np.array([2, 1, 0]), "reverse")
    nodes = [
        helper.make_node("Softmax", ["x"], ["first"]),
        helper.make_node("Gather", ["first", "reverse"], ["second"], axis=1),
    ]
    outputs = [declare("first", None, 3), declare("second", None, 3)]
    return build_graph(nodes, outputs, [declare("x", None, 3)], [reverse], classes="[0, 1, 2]", **metadata)


def test_output_is_asked_for_when_several_can_have_the_probabilities() -> None:
    with pytest.raises(StartupError, match=r'in metadata "probability_output": first or second$'):
        Model("heads", "1", build_two_heads())


@pytest.mark.parametrize(("name", "expected"), [("first", [0.5, 0.25, 0.25]), ("second", [0.25, 0.25, 0.5])])
def test_probabilities_are_those_of_the_output_that_metadata_names(name: str, expected: list[float]) -> None:
    model = Model("heads", "1", build_two_heads(probability_output=name))

    row = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    np.testing.assert_allclose(model.score(row).probabilities, [expected], rtol=1e-6)


def test_output_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(StartupError, match=r"is 'third', the outputs that can have them are first, second$"):
        Model("heads", "1", build_two_heads(probability_output="third"))


TEXTS: list[str | None] = ["red", "blue", None, "red", None, "blue"]


def train_on_missing_texts(missing: str) -> tuple[Any, bytes]:
    """Train on texts of which some are missing, written as `missing`, and export."""
    rows: NDArray[Any] = np.array([[missing if text is None else text] for text in TEXTS], dtype=object)
    imputer = SimpleImputer(missing_values=missing, strategy="most_frequent")
    columns = ColumnTransformer([("imputed", make_pipeline(imputer, OneHotEncoder()), [0])])
    pipeline = make_pipeline(columns, LogisticRegression()).fit(rows, ["a", "b", "a", "a", "a", "b"])
    model = to_onnx(
        pipeline,
        initial_types=[("color", StringTensorType([None, 1]))],
        options={"zipmap": False},
        target_opset=OPSETS,
    )
    return pipeline, bytes(model.SerializeToString())


@pytest.mark.parametrize("missing", ["nan", "", "None", "?"])
def test_missing_text_is_what_the_pipeline_was_trained_with(missing: str) -> None:
    pipeline, content = train_on_missing_texts(missing)
    model = Model(
        "colors", "1", add_metadata(content, missing_values="allowed", missing_text=missing, example='["red"]')
    )

    probabilities = model.score_rows([["red"], ["blue"], [None]]).probabilities

    expected = pipeline.predict_proba(np.array([["red"], ["blue"], [missing]], dtype=object))
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert model.signature.features[0].find_fault(None) is None


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"missing_values": "allowed"}, 'and texts with metadata "missing_text"'),
        ({"missing_text": ""}, 'needs "missing_values": allowed'),
    ],
    ids=["text not said", "not allowed"],
)
def test_metadata_of_missing_texts_is_refused_when_it_has_no_effect(metadata: dict[str, str], reason: str) -> None:
    _, content = train_on_missing_texts("nan")

    with pytest.raises(StartupError, match=reason):
        Model("colors", "1", add_metadata(content, **metadata))


TWO = np.stack([label((0, 1)), label((0, 1, 1))], axis=1)

NOT_SERVED: dict[str, tuple[Callable[[], bytes], str]] = {
    "multi-label": (
        lambda: export(MLPClassifier((5,), max_iter=2000, tol=0.05).fit(ROWS, TWO), zipmap=False),
        "several labels",
    ),
    "multi-output": (
        lambda: export(MultiOutputClassifier(LogisticRegression()).fit(ROWS, TWO), zipmap=False),
        "several labels",
    ),
    "multi-output tree": (lambda: export(DecisionTreeClassifier().fit(ROWS, TWO), zipmap=False), "several labels"),
    "one-class SVM": (lambda: export(OneClassSVM().fit(ROWS)), "outlier detectors .* are not served"),
    "local outlier factor": (lambda: export(LocalOutlierFactor(novelty=True).fit(ROWS)), "outlier detectors"),
}


@pytest.mark.parametrize(("make", "reason"), NOT_SERVED.values(), ids=NOT_SERVED)
def test_what_is_not_served_is_said_plainly(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(StartupError, match=reason):
        Model("model", "1", make())
