"""Every scikit-learn classifier that converts, with labels of every kind: answered as scikit-learn does, or refused."""

import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils import all_estimators

from app.errors import StartupError
from app.serving.model import Model
from app.serving.probabilities import Float32
from tests.support.family_models import MADE, read_made
from tests.support.onnx_models import FEATURES, OPSETS, add_metadata

pytestmark = pytest.mark.filterwarnings("ignore")

LABELS: dict[str, Sequence[int | str]] = {
    "from 0": (0, 1),
    "from 1": (1, 2),
    "signs": (-1, 1),
    "int64": (10_000_000_000, 20_000_000_000),
    "texts": ("no", "yes"),
    "booleans": (False, True),
    "three": (2, 5, 9),
    "three texts": ("ash", "beech", "cherry"),
}

INNER = {
    "OneVsOneClassifier",
    "OneVsRestClassifier",
    "OutputCodeClassifier",
    "SelfTrainingClassifier",
    "FixedThresholdClassifier",
    "TunedThresholdClassifierCV",
}
"""Classifiers around another one, without which they cannot be made."""

SEVERAL_LABELS = {"ClassifierChain", "MultiOutputClassifier"}
"""They give a row several labels, which is not served."""

NOT_CONVERTED = {
    "DummyClassifier",
    "FixedThresholdClassifier",
    "GaussianProcessClassifier",
    "HistGradientBoostingClassifier",
    "LabelPropagation",
    "LabelSpreading",
    "NearestCentroid",
    "OutputCodeClassifier",
    "SelfTrainingClassifier",
}
"""skl2onnx 1.20 has no converter for them, or one whose graph is not ONNX."""

MARGINS = {
    "LinearSVC",
    "OneVsOneClassifier",
    "PassiveAggressiveClassifier",
    "Perceptron",
    "RidgeClassifier",
    "RidgeClassifierCV",
    "SGDClassifier",
}
"""They have no predict_proba: what their graphs call probabilities are margins or votes."""

NAMES = sorted(name for name, _ in all_estimators(type_filter="classifier") if name not in SEVERAL_LABELS)


def make_rows(count: int, seed: int) -> Float32:
    """Make rows that are not negative, as naive Bayes wants them."""
    return np.abs(np.random.default_rng(seed).normal(size=(count, FEATURES))).astype(np.float32)


@functools.cache
def train(name: str, classes: tuple[int | str, ...]) -> Any:
    """Fit a classifier of this name on rows whose classes overlap a little."""
    rows = make_rows(300, 0)
    ranks = (rows[:, 0] + rows[:, 1] * rows[:, 2]).argsort().argsort()
    return make_estimator(name).fit(rows, np.array(classes)[ranks * len(classes) // len(rows)])


def make_estimator(name: str) -> Any:
    kind = dict(all_estimators(type_filter="classifier"))[name]
    parts = [("linear", LogisticRegression()), ("tree", DecisionTreeClassifier(max_depth=3, random_state=0))]
    match name:
        case "StackingClassifier":
            return kind(parts)
        case "VotingClassifier":
            return kind(parts, voting="soft", flatten_transform=False)
        case "SVC" | "NuSVC":
            return kind(probability=True, random_state=0)
        case "RadiusNeighborsClassifier":
            return kind(radius=5.0)
        case _ if name in INNER:
            return kind(LogisticRegression())
    estimator = kind()
    settings = {"random_state": 0, "n_estimators": 8, "max_iter": 200}
    known = estimator.get_params()
    return estimator.set_params(**{key: value for key, value in settings.items() if key in known})


def convert(estimator: Any, **options: Any) -> bytes:
    """Convert an estimator; the options are skl2onnx's."""
    types = [("x", FloatTensorType([None, FEATURES]))]
    opsets = {"": 17, "ai.onnx.ml": 3}
    return bytes(
        convert_sklearn(
            estimator, initial_types=types, options=options or None, target_opset=opsets
        ).SerializeToString()
    )


def check_exact(content: bytes, estimator: Any) -> None:
    """Serve the file, and compare classes, probabilities and predictions with the estimator's own."""
    rows = make_rows(200, 9)
    model = Model("swept", "1", content)

    scores = model.score(rows)

    predictions = [model.signature.classes[index] for index in scores.predicted.tolist()]
    assert list(model.signature.classes) == estimator.classes_.tolist()
    np.testing.assert_allclose(scores.probabilities, estimator.predict_proba(rows), atol=1e-5)
    assert predictions == estimator.predict(rows).tolist()


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_classifier_is_exact_or_refused(name: str, labels: str) -> None:
    classes = tuple(LABELS[labels])
    if name in TWO_CLASSES_ONLY and len(classes) > 2:
        pytest.skip("two classes only")
    if name in NOT_CONVERTED or (name, labels) == ("AdaBoostClassifier", "booleans"):
        with pytest.raises(Exception, match=r"."):
            Model("swept", "1", export(name, train(name, classes)))
        return
    estimator = train(name, classes)
    content = export(name, estimator)
    if name in MARGINS:
        with pytest.raises(StartupError):
            Model("swept", "1", content)
        return
    check_exact(content, estimator)


TWO_CLASSES_ONLY = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}


def export(name: str, estimator: Any) -> bytes:
    """Convert an estimator as docs/models.md says, where the converter's defaults do not give what it predicts."""
    match name:
        case "LinearDiscriminantAnalysis" if len(estimator.classes_) == 2:
            return add_metadata(convert(estimator, raw_scores=True), output="logits")
        case "TunedThresholdClassifierCV":
            return add_metadata(convert(estimator), decision_threshold=repr(float(estimator.best_threshold_)))
        case "RadiusNeighborsClassifier":
            return add_metadata(convert(estimator), example=json.dumps(make_rows(1, 0)[0].tolist()))
    return convert(estimator)


@pytest.mark.parametrize("labels", ["from 1", "texts", "three", "three texts"])
@pytest.mark.parametrize(
    "name", ["AdaBoostClassifier", "GradientBoostingClassifier", "KNeighborsClassifier", "LogisticRegression", "SVC"]
)
def test_classifier_is_exact_when_its_probabilities_are_a_matrix(name: str, labels: str) -> None:
    estimator = train(name, tuple(LABELS[labels]))

    check_exact(convert(estimator, zipmap=False), estimator)


@pytest.mark.parametrize("zipmap", [False, True], ids=["tensor", "zipmap"])
@pytest.mark.parametrize(
    "name",
    ["AdaBoostClassifier", "GradientBoostingClassifier", "LinearDiscriminantAnalysis", "LogisticRegression"],
)
def test_raw_scores_of_two_classes_are_a_sigmoids(name: str, zipmap: bool) -> None:
    estimator = train(name, (1, 2))
    content = convert(estimator, raw_scores=True, zipmap=zipmap)

    check_exact(add_metadata(content, output="logits"), estimator)


def test_forest_behind_an_ordinal_encoder_is_exact() -> None:
    generator = np.random.default_rng(0)
    numbers = make_rows(2000, 1)[:, :1]
    texts = generator.choice(["ash", "beech", "cherry", "elm"], (2000, 1)).astype(object)
    rows = np.hstack([numbers.astype(object), texts])
    labels = (numbers[:, 0] + (texts[:, 0] > "beech") + generator.normal(size=2000) > 1.5).astype(int)
    columns = ColumnTransformer([("texts", OrdinalEncoder(), [1])], remainder="passthrough")
    forest = Pipeline([("columns", columns), ("forest", RandomForestClassifier(30, random_state=0))]).fit(rows, labels)
    types = [("number", FloatTensorType([None, 1])), ("text", StringTensorType([None, 1]))]
    content = convert_sklearn(forest, initial_types=types, target_opset=OPSETS).SerializeToString()

    scores = Model("forest", "1", content).score_rows(rows.tolist())

    np.testing.assert_allclose(scores.probabilities, forest.predict_proba(rows), atol=1e-6)  # a vote is 0.03
    np.testing.assert_array_equal(scores.predicted, forest.predict(rows))


SWEPT = [name for name in json.loads((MADE / "answers.json").read_text()) if name.startswith("swept-")]


@pytest.mark.parametrize("name", SWEPT)
def test_tree_library_is_exact(name: str) -> None:
    family = read_made(name)

    scores = Model(name, "1", family.content).score_rows(family.rows)

    np.testing.assert_allclose(scores.probabilities, family.probabilities, atol=1e-6)
    assert [family.classes[index] for index in scores.predicted.tolist()] == family.predictions
