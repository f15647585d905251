"""What is found at load by trying a model: rows that mix, labels that mislead, values that are no probabilities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from app.errors import StartupError
from app.serving.model import Model
from app.serving.probabilities import Float32
from tests.support.family_models import FAMILIES, LOGITS, make_network
from tests.support.onnx_models import (
    FEATURES,
    OPSETS,
    add_metadata,
    build_contrary,
    build_echo,
    build_graph,
    build_linear,
    build_weighing,
    declare,
    make_rows,
    name_predictions,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::sklearn.exceptions.ConvergenceWarning")


def run_alone(content: bytes, rows: Float32) -> Any:
    """Return the probabilities of a graph as onnxruntime gives them for each row by itself."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    output = session.get_outputs()[-1].name
    return np.concatenate([session.run([output], {name: rows[at : at + 1]})[0] for at in range(len(rows))])


def quantize(directory: Path) -> bytes:
    """Train a small network on scaled features, and quantize it as onnxruntime's documentation shows."""
    rows = make_rows(300, seed=0)
    network = MLPClassifier((8,), max_iter=300, random_state=0).fit(rows, (rows[:, 0] > rows[:, 1]).astype(int))
    model = convert_sklearn(
        network,
        initial_types=[("x", FloatTensorType([None, FEATURES]))],
        options={"zipmap": False},
        target_opset=OPSETS,
    )
    exported, quantized = directory / "exported.onnx", directory / "quantized.onnx"
    exported.write_bytes(model.SerializeToString())
    quantize_dynamic(exported, quantized)
    return quantized.read_bytes()


def test_rows_are_run_alone_when_a_quantized_graph_scales_by_the_batch(tmp_path: Path) -> None:
    content = quantize(tmp_path)
    rows = make_rows(40)
    rows[::8] *= 1000  # other clients' outliers

    model = Model("quantized", "1", content)
    scores = model.score(rows)

    assert model.signature.batching_doubt == "DynamicQuantizeLinear scales by all rows of a run"
    np.testing.assert_array_equal(scores.probabilities, run_alone(content, rows))


def test_rows_are_one_run_when_metadata_says_so(tmp_path: Path) -> None:
    content = add_metadata(quantize(tmp_path), batching="on")

    assert Model("quantized", "1", content).signature.batching_doubt is None


def build_mixing(*nodes: NodeProto) -> bytes:
    """Build a softmax of what these nodes make of the features `x` as `mixed`."""
    constants = [
        helper.make_node("Constant", [], ["rows"], value_ints=[0]),
        helper.make_node("Constant", [], ["ones"], value_floats=[1.0] * 3),
        helper.make_node("Constant", [], ["zeros"], value_floats=[0.0] * 3),
    ]
    last = helper.make_node("Softmax", ["mixed"], ["p"])
    return build_graph([*constants, *nodes, last], [declare("p", None, 3)], [declare("x", None, 3)])


MIXING: dict[str, tuple[bytes, str]] = {
    "largest of the run": (
        build_mixing(
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "most"], ["mixed"]),
        ),
        "a row's answer depends on the other rows of a run",
    ),
    "number of rows": (
        build_mixing(
            helper.make_node("Shape", ["x"], ["shape"], end=1),
            helper.make_node("Cast", ["shape"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["x", "count"], ["mixed"]),
        ),
        "a row's answer alone differs from its answer in a run of several",
    ),
    "Softmax along the rows": (
        build_mixing(helper.make_node("Softmax", ["x"], ["mixed"], axis=0)),
        "Softmax has axis 0, and compares the rows of a run",
    ),
}


CHANGING: dict[str, bytes] = {
    "BatchNormalization in training mode": build_mixing(
        helper.make_node(
            "BatchNormalization",
            ["x", "ones", "zeros", "zeros", "ones"],
            ["mixed", "mean", "variance"],
            training_mode=1,
        )
    ),
    "Dropout in training mode": build_mixing(
        helper.make_node("Constant", [], ["ratio"], value_float=0.5),
        helper.make_node("Constant", [], ["training"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("Dropout", ["x", "ratio", "training"], ["mixed"]),
    ),
    "noise": build_mixing(
        helper.make_node("RandomNormalLike", ["x"], ["noise"]), helper.make_node("Add", ["x", "noise"], ["mixed"])
    ),
}


@pytest.mark.parametrize("content", CHANGING.values(), ids=CHANGING)
def test_start_is_refused_when_the_same_row_is_answered_differently(content: bytes) -> None:
    rows = np.repeat(np.array([[1, 2, 3]], np.float32), 9, axis=0)
    rows[4] *= 1e9  # onnxruntime's BatchNormalization in training mode remembers the rows of earlier runs
    assert np.delete(run_alone(content, rows), 4, axis=0).std(axis=0).max() > 0

    with pytest.raises(StartupError, match=r"answers the same row differently .*model\.eval\(\)"):
        Model("random", "1", content)


@pytest.mark.parametrize(("content", "reason"), MIXING.values(), ids=MIXING)
def test_rows_are_run_alone_when_the_graph_mixes_them(content: bytes, reason: str) -> None:
    rows = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)

    model = Model("mixing", "1", content)

    assert model.signature.batching_doubt == reason
    np.testing.assert_allclose(model.score(rows).probabilities, run_alone(content, rows), atol=1e-5)


def test_rows_are_run_alone_when_an_operator_in_a_branch_mixes_them() -> None:
    branch = helper.make_graph(
        [helper.make_node("Softmax", ["x"], ["inner"], axis=0)], "branch", [], [declare("inner", None, 3)]
    )
    always = helper.make_node("Constant", [], ["always"], value=helper.make_tensor("always", TensorProto.BOOL, [], [1]))
    choice = helper.make_node("If", ["always"], ["mixed"], then_branch=branch, else_branch=branch)

    model = Model("mixing", "1", build_mixing(always, choice))

    assert model.signature.batching_doubt == "Softmax has axis 0, and compares the rows of a run"


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "batch-of-one"])
def test_rows_are_one_run_and_the_label_is_trusted_in_every_family(name: str) -> None:
    signature = Model(name, "1", FAMILIES[name]().content).signature

    assert (signature.batching_doubt, signature.label_doubt) == (None, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (FAMILIES["batch-of-one"]().content, "the graph takes one row"),
        (build_echo(2, batching="off"), 'metadata "batching" is off'),
    ],
    ids=["one row", "off"],
)
def test_rows_are_run_alone_when_the_file_says_so(content: bytes, reason: str) -> None:
    assert Model("alone", "1", content).signature.batching_doubt == reason


def test_start_is_refused_when_rows_of_a_graph_of_one_row_shall_be_batched() -> None:
    with pytest.raises(StartupError, match="export with a free first dimension, or drop it"):
        Model("alone", "1", add_metadata(FAMILIES["batch-of-one"]().content, batching="on"))


def build_labelled(*nodes: NodeProto, classes: str = "[0, 1]") -> bytes:
    """Build a softmax of two features with a label `y` that these nodes make of the probabilities `p`."""
    softmax = helper.make_node("Softmax", ["x"], ["p"])
    outputs = [declare("y", None, type_=TensorProto.INT64), declare("p", None, 2)]
    return build_graph([softmax, *nodes], outputs, [declare("x", None, 2)], classes=classes)


CONSTANT = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(np.array([1]), "value"))
LIKELIEST = helper.make_node("ArgMax", ["p"], ["y"], axis=1, keepdims=0)
LEAST = helper.make_node("ArgMin", ["p"], ["y"], axis=1, keepdims=0)

DOUBTED: dict[str, tuple[bytes, str]] = {
    "index": (build_labelled(LIKELIEST, classes="[1, 2]"), "it says 0, which is not a class"),
    "contrary": (build_labelled(LEAST), "it says 0 where 1 is likelier"),
    "contrary of three": (build_weighing((1.0, 1.0, -1.0)), "it says 1 where 2 is likelier"),
    "one for all rows": (build_labelled(CONSTANT), "it says 1 for every row, also where the other class is likelier"),
    "not compared": (build_contrary(3, classes="[0, 1, 2]"), "the rows that were tried reach 1 of 3 classes"),
}


@pytest.mark.parametrize(("content", "reason"), DOUBTED.values(), ids=DOUBTED)
def test_label_is_not_used_when_it_names_other_classes_than_the_probabilities(content: bytes, reason: str) -> None:
    model = Model("labelled", "1", content)
    rows = np.random.default_rng(2).normal(size=(30, len(model.signature.features))).astype(np.float32)

    scores = model.score(rows)

    assert model.signature.label_doubt == reason
    np.testing.assert_array_equal(scores.predicted, scores.probabilities.argmax(axis=1))


@pytest.mark.parametrize("classes", [2, 3])
def test_label_is_used_when_a_library_decides_by_votes(classes: int) -> None:
    rows = make_rows(150, seed=3)
    ranks = (rows[:, 0] + rows[:, 1] + np.random.default_rng(0).normal(size=150)).argsort().argsort()
    svc = SVC(probability=True, random_state=1).fit(rows, ranks * classes // 150)
    model = convert_sklearn(
        svc, initial_types=[("x", FloatTensorType([None, FEATURES]))], options={"zipmap": False}, target_opset=OPSETS
    )
    tried = make_rows(500)

    served = Model("votes", "1", model.SerializeToString())

    assert np.any(svc.predict(tried) != svc.predict_proba(tried).argmax(axis=1))  # else this tries nothing
    assert served.signature.label_doubt is None
    assert name_predictions(served, tried) == svc.predict(tried).tolist()


def test_each_class_keeps_its_column_when_metadata_names_them_in_another_order() -> None:
    content = build_linear(("leaves", "stays"))
    rows = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    expected = run_alone(content, rows)

    model = Model("churn", "1", add_metadata(content, classes='["stays", "leaves"]', positive_class='"leaves"'))
    scores = model.score(rows)

    assert model.signature.classes == ("stays", "leaves")
    np.testing.assert_allclose(scores.probabilities, expected[:, ::-1], atol=1e-6)
    np.testing.assert_allclose(scores.scores, expected[:, 0], atol=1e-6)
    assert name_predictions(model, rows) == np.array(["leaves", "stays"])[expected.argmax(axis=1)].tolist()


def train_tree() -> Any:
    """Train a tree of one leaf with 7 positives of 10."""
    return DecisionTreeClassifier().fit(np.zeros((10, FEATURES)), [1] * 7 + [0] * 3)


@pytest.mark.parametrize(("threshold", "predicted"), [(0.7, 1), (0.70001, 0)], ids=["equal", "above"])
def test_threshold_decides_as_in_scikit_learn_when_a_score_equals_it(threshold: float, predicted: int) -> None:
    rows, tree = np.zeros((1, FEATURES), np.float32), train_tree()
    model = convert_sklearn(tree, initial_types=[("x", FloatTensorType([None, FEATURES]))], target_opset=OPSETS)

    served = Model("tree", "1", add_metadata(model.SerializeToString(), decision_threshold=repr(threshold)))

    assert int(tree.predict_proba(rows)[0, 1] >= threshold) == predicted
    assert name_predictions(served, rows) == [predicted]


def export_outlier_detector() -> bytes:
    model = IsolationForest(n_estimators=10, random_state=0).fit(make_rows(300))
    types = [("x", FloatTensorType([None, FEATURES]))]
    return bytes(convert_sklearn(model, initial_types=types, target_opset=OPSETS).SerializeToString())


def build_labels(count: int) -> bytes:
    """Build labels that do not exclude each other, each a sigmoid; two of them sum to 1 for a row of zeros."""
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Clip", ["s"], ["p"])]
    classes = str(list(range(count)))
    return build_graph(nodes, [declare("p", None, count)], [declare("x", None, count)], classes=classes)


def export_raw_scores(classes: int, **options: Any) -> bytes:
    rows = make_rows(200)
    model = LogisticRegression().fit(rows, rows[:, 0].argsort().argsort() * classes // 200)
    types = [("x", FloatTensorType([None, FEATURES]))]
    settings = {"zipmap": False, "raw_scores": True} | options
    return bytes(convert_sklearn(model, initial_types=types, options=settings, target_opset=OPSETS).SerializeToString())


def build_mirrored() -> bytes:
    """Build logits [-s, s] with one matrix, as the training of a softmax regression from zero gives them."""
    weights = helper.make_tensor("value", TensorProto.FLOAT, [2, 2], [-1.0, 1.0, 0.5, -0.5])
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weights),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
    ]
    return build_graph(nodes, [declare("p", None, 2)], [declare("x", None, 2)], output="logits")


IMPROPER: dict[str, tuple[Callable[[], bytes], str]] = {
    "outlier detector": (lambda: add_metadata(export_outlier_detector(), classes="[-1, 1]"), "are not probabilities"),
    "two labels": (lambda: build_labels(2), "for the row ["),
    "raw scores": (lambda: export_raw_scores(2), "are not probabilities"),
    "raw scores of three": (lambda: export_raw_scores(3), "are not probabilities"),
    "three labels": (
        lambda: build_labels(3),
        "values that sum to 1.5 for the row [0.0, 0.0, 0.0], which are not probabilities",
    ),
    "probabilities as logits": (
        lambda: add_metadata(FAMILIES["softmax"]().content, output="logits"),
        "has probabilities: leave the entry out",
    ),
    "one column of probabilities as logits": (
        lambda: add_metadata(FAMILIES["sigmoid"]().content, output="logits"),
        "has probabilities: leave the entry out",
    ),
    "logits of a softmax or a sigmoid": (build_mirrored, "is not in the graph; export the probabilities instead"),
}


@pytest.mark.parametrize(("build", "reason"), IMPROPER.values(), ids=IMPROPER)
def test_start_is_refused_when_values_are_no_probabilities(build: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(StartupError) as refusal:
        Model("improper", "1", build())

    assert reason in str(refusal.value)


def test_two_logits_of_a_network_are_a_softmaxs() -> None:
    family = make_network(2, LOGITS, output="logits")

    scores = Model("network", "1", family.content).score_rows(family.rows)

    np.testing.assert_allclose(scores.probabilities, family.probabilities, atol=1e-6)
