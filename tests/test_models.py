"""What a loaded model answers, against scikit-learn and against graphs whose answer is known."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from onnx import helper

from app.errors import StartupError
from app.serving.model import Model
from app.serving.signature import decision_rule
from tests.support.onnx_models import (
    Classes,
    Kind,
    add_metadata,
    build_contrary,
    build_echo,
    build_echo_with_label,
    build_imputing,
    build_linear,
    build_weighing,
    convert,
    make_rows,
    name_predictions,
    train,
)

each_kind = pytest.mark.parametrize("kind", ["logistic", "forest", "boosting"])
each_output = pytest.mark.parametrize("zipmap", [False, True], ids=["tensor", "zipmap"])
each_set_of_classes = pytest.mark.parametrize(
    "classes",
    [(0, 1), (1, 2), (-1, 1), ("no", "yes"), (0, 1, 2), (1, 2, 3), ("ash", "beech", "cherry")],
    ids=lambda classes: "-".join(map(str, classes)),
)


@each_kind
@each_output
@each_set_of_classes
def test_probabilities_are_scikit_learns(kind: Kind, zipmap: bool, classes: Classes) -> None:
    model = Model("trained", "1", convert(kind, classes, zipmap=zipmap))

    scores = model.score(make_rows())

    np.testing.assert_allclose(scores.probabilities, train(kind, classes).predict_proba(make_rows()), atol=1e-5)


@each_kind
@each_output
@each_set_of_classes
def test_predicted_class_is_scikit_learns(kind: Kind, zipmap: bool, classes: Classes) -> None:
    model = Model("trained", "1", convert(kind, classes, zipmap=zipmap))

    predicted = name_predictions(model, make_rows())

    assert predicted == train(kind, classes).predict(make_rows()).tolist()


@each_output
@each_set_of_classes
def test_classes_are_the_graphs_when_metadata_names_none(zipmap: bool, classes: Classes) -> None:
    model = Model("trained", "1", convert("forest", classes, zipmap=zipmap))

    assert model.signature.classes == classes


@pytest.mark.parametrize("kind", ["bagging", "stacking"])
@pytest.mark.parametrize("classes", [(1, 2), (1, 2, 3)], ids=["two", "three"])
def test_predicted_class_is_scikit_learns_when_classifiers_are_nested(kind: Kind, classes: Classes) -> None:
    predicted = predict_or_refuse(convert(kind, classes))

    expected = train(kind, classes).predict(make_rows()).tolist()
    assert predicted == expected or 'add metadata "classes"' in str(predicted)


def predict_or_refuse(content: bytes) -> list[int | str]:
    """Return the predicted classes, or the one line that refuses the model: only a wrong class is a fault."""
    try:
        return name_predictions(Model("nested", "1", content), make_rows())
    except StartupError as error:
        return [str(error)]


@pytest.mark.parametrize("kind", ["bagging", "stacking"])
def test_predicted_class_is_scikit_learns_when_metadata_names_the_classes(kind: Kind) -> None:
    model = Model("nested", "1", add_metadata(convert(kind, (1, 2, 3)), classes="[1, 2, 3]"))

    predicted = name_predictions(model, make_rows())

    assert predicted == train(kind, (1, 2, 3)).predict(make_rows()).tolist()


@each_kind
@each_output
def test_rows_of_a_batch_are_those_of_single_runs(kind: Kind, zipmap: bool) -> None:
    model = Model("trained", "1", convert(kind, (1, 2, 3), zipmap=zipmap))
    rows = make_rows(20)

    batch = model.score(rows)

    singles = [model.score(rows[index : index + 1]) for index in range(len(rows))]
    np.testing.assert_allclose(batch.probabilities, np.concatenate([one.probabilities for one in singles]), atol=1e-6)
    np.testing.assert_array_equal(batch.predicted, np.concatenate([one.predicted for one in singles]))
    np.testing.assert_allclose(batch.scores, np.concatenate([one.scores for one in singles]), atol=1e-6)


def test_arrays_have_their_types_and_shapes() -> None:
    scores = Model("trained", "1", convert("forest", (1, 2, 3), zipmap=True)).score(make_rows(5))

    assert (scores.probabilities.dtype, scores.probabilities.shape) == (np.dtype(np.float32), (5, 3))
    assert (scores.predicted.dtype, scores.predicted.shape) == (np.dtype(np.intp), (5,))
    assert (scores.scores.dtype, scores.scores.shape) == (np.dtype(np.float32), (5,))


@pytest.mark.parametrize(
    ("positive_class", "score"),
    [(None, 0.8), ("1", 0.2), ("2", 0.8), ('"2"', 0.8)],
    ids=["last by default", "first", "last", "as text"],
)
def test_score_is_the_positive_classs_probability_when_two(positive_class: str | None, score: float) -> None:
    metadata = {} if positive_class is None else {"positive_class": positive_class}
    model = Model("echo", "1", build_echo(2, classes="[1, 2]", **metadata))

    scores = model.score(np.array([[0.2, 0.8], [0.8, 0.2]], dtype=np.float32)).scores

    np.testing.assert_allclose(scores, [score, 1 - score], rtol=1e-6)


@pytest.mark.parametrize(
    ("weights", "score"), [((1.0, 1.0, 1.0), 0.5), ((1.0, 1.0, 2.0), 0.3)], ids=["likeliest", "another"]
)
def test_score_is_the_predicted_classs_probability_when_several(weights: tuple[float, ...], score: float) -> None:
    model = Model("graph", "1", build_weighing(weights))

    scores = model.score(np.log(np.array([[0.5, 0.2, 0.3]], dtype=np.float32))).scores

    np.testing.assert_allclose(scores, [score], rtol=1e-6)


BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))


@pytest.mark.parametrize(
    ("row", "predicted"),
    [((0.9, 0.1), 1), ((0.6, 0.4), 2), ((0.1, 0.9), 2)],
    ids=["below", "between threshold and half", "above"],
)
@pytest.mark.parametrize("graph", [build_echo, build_contrary], ids=["no label", "contrary label"])
def test_prediction_follows_the_threshold_whatever_the_graph_says(
    graph: Callable[..., bytes], row: tuple[float, float], predicted: int
) -> None:
    model = Model("graph", "1", graph(2, classes="[1, 2]", decision_threshold="0.3"))

    assert name_predictions(model, np.array([row], dtype=np.float32)) == [predicted]


@pytest.mark.parametrize(
    ("score", "predicted"), [(0.5, "yes"), (BELOW_HALF, "no")], ids=["at the threshold", "one float below"]
)
def test_prediction_is_positive_from_the_threshold_on(score: float, predicted: str) -> None:
    model = Model("echo", "1", build_echo(2, classes='["no", "yes"]', decision_threshold="0.5"))

    assert name_predictions(model, np.array([[1 - score, score]], dtype=np.float32)) == [predicted]


def test_threshold_is_of_the_positive_class_when_that_is_the_first() -> None:
    content = build_echo(2, classes='["bad", "good"]', positive_class='"bad"', decision_threshold="0.2")
    rows = np.array([[0.25, 0.75], [0.15, 0.85]], dtype=np.float32)

    assert name_predictions(Model("echo", "1", content), rows) == ["bad", "good"]


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (build_echo(2, decision_threshold="0.5"), "threshold"),
        (build_contrary(2, classes="[0, 1]", decision_threshold="0.5"), "threshold"),
        (build_weighing((1.0, 2.0)), "label"),
        (build_contrary(2, classes="[0, 1]"), "argmax"),
        (build_echo(2), "argmax"),
    ],
    ids=["threshold", "threshold before label", "label", "contrary label", "no label"],
)
def test_decision_rule(content: bytes, rule: str) -> None:
    assert decision_rule(Model("graph", "1", content).signature) == rule


def test_prediction_is_the_graphs_label_when_another_is_likelier() -> None:
    model = Model("weighing", "1", build_weighing((1.0, 1.0, 2.0)))
    rows = np.log(np.array([[0.5, 0.2, 0.3], [0.2, 0.7, 0.1]], dtype=np.float32))

    assert name_predictions(model, rows) == [2, 1]


def test_prediction_is_the_likeliest_class_when_the_graph_has_no_label() -> None:
    model = Model("echo", "1", build_echo(3, classes='["a", "b", "c"]'))
    rows = np.array([[0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], dtype=np.float32)

    assert name_predictions(model, rows) == ["b", "c"]


def test_label_is_read_when_its_shape_is_a_column() -> None:
    label = helper.make_node("ArgMax", ["p"], ["y"], axis=1, keepdims=1)
    model = Model("column", "1", build_echo_with_label(2, label, classes="[0, 1]"))

    assert name_predictions(model, np.array([[0.9, 0.1], [0.1, 0.9]], dtype=np.float32)) == [0, 1]


def test_classes_are_counted_from_zero_when_nothing_names_them() -> None:
    assert Model("echo", "1", build_echo(3)).signature.classes == (0, 1, 2)


def test_classes_are_the_metadatas_when_the_graph_names_others() -> None:
    model = Model("linear", "1", add_metadata(build_linear(("a", "b")), classes='["b", "a"]'))

    assert model.signature.classes == ("b", "a")


def test_zipmap_is_read_in_the_metadatas_order() -> None:
    content = add_metadata(convert("forest", (1, 2, 3), zipmap=True), classes="[3, 1, 2]")

    probabilities = Model("reordered", "1", content).score(make_rows()).probabilities

    expected = train("forest", (1, 2, 3)).predict_proba(make_rows())[:, [2, 0, 1]]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({}, ("f0", "f1", "f2")),
        ({"feature_names": json.dumps(["age", "größe", "a/b~c"])}, ("age", "größe", "a/b~c")),
        ({"feature_names": "[7, 8, 9]"}, ("7", "8", "9")),
    ],
    ids=["by position", "texts", "integers"],
)
def test_feature_names(metadata: dict[str, str], names: tuple[str, ...]) -> None:
    assert Model("echo", "1", build_echo(3, **metadata)).signature.feature_names == names


def test_missing_value_reaches_the_graph_as_nan() -> None:
    model = Model("imputing", "1", build_imputing(missing_values="allowed"))

    probabilities = model.score(np.array([[np.nan, 0.5, 0.25]], dtype=np.float32)).probabilities

    assert probabilities.tolist() == [[0.25, 0.5, 0.25]]


@pytest.mark.parametrize(
    ("metadata", "allowed"),
    [({}, False), ({"missing_values": "refused"}, False), ({"missing_values": "allowed"}, True)],
    ids=["by default", "refused", "allowed"],
)
def test_missing_values(metadata: dict[str, str], allowed: bool) -> None:
    assert Model("imputing", "1", build_imputing(**metadata)).signature.missing_allowed is allowed


def test_training_f1_is_the_metadatas() -> None:
    assert Model("echo", "1", build_echo(3, training_f1="0.875")).signature.training_f1 == 0.875
