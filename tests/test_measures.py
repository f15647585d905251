"""Every measure against scikit-learn on the rows that were counted, and the states."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from app.measures.cells import BINS
from app.measures.measure import Measures, QualityState, measure
from app.settings import F1Average
from tests.support.cells import AVERAGES, count_cells

unhurried = settings(deadline=None)
"""scikit-learn takes its time on a busy machine."""

Rows = list[tuple[float, int, int]]
"""Score, predicted class, label or -1."""

SCORES = st.floats(0, 1) | st.integers(0, 100).map(lambda percent: percent / 100)


def draw_rows(classes: int) -> st.SearchStrategy[Rows]:
    return st.lists(st.tuples(SCORES, st.integers(0, classes - 1), st.integers(-1, classes - 1)), max_size=60)


def measure_rows(rows: Rows, classes: int, average: F1Average, min_labels: int = 0) -> Measures:
    scores, predicted, labels = zip(*rows, strict=True) if rows else ((), (), ())
    positive = 1 if classes == 2 else None
    return measure(count_cells(scores, predicted, labels), classes, positive, average, min_labels)


def make_rows(confusion: dict[tuple[int, int], int], unlabelled: int = 0) -> Rows:
    """Rows by (label, predicted class), with the predicted class's side of 0.5 as the score."""
    rows = [
        (0.9 if predicted else 0.1, predicted, label) for (label, predicted), n in confusion.items() for _ in range(n)
    ]
    return rows + [(0.1, 0, -1)] * unlabelled


def known_rows(rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    scores, predicted, labels = (np.array(column) for column in zip(*(row for row in rows if row[2] >= 0), strict=True))
    return scores, predicted, labels


def number(value: float) -> float | None:
    return None if math.isnan(value) else value


def near(value: float | list[float] | None) -> Any:
    return pytest.approx(value, abs=1e-12)


@st.composite
def labelled_rows(draw: st.DrawFn) -> tuple[int, F1Average, Rows]:
    classes = draw(st.integers(2, 4))
    average = draw(st.sampled_from(AVERAGES if classes == 2 else AVERAGES[1:]))
    return classes, average, draw(draw_rows(classes).filter(lambda rows: any(row[2] >= 0 for row in rows)))


@unhurried
@given(drawn=labelled_rows())
def test_decisions_are_rated_as_scikit_learn_rates_them(drawn: tuple[int, F1Average, Rows]) -> None:
    classes, average, rows = drawn
    _, predicted, labels = known_rows(rows)
    options: dict[str, Any] = {"average": average, "zero_division": np.nan}

    measures = measure_rows(rows, classes, average)

    matrix = confusion_matrix(labels, predicted, labels=range(classes))
    assert measures.confusion == [[*cell, matrix[tuple(cell)]] for cell in np.argwhere(matrix).tolist()]
    assert (measures.predictions, measures.labelled) == (len(rows), len(labels))
    assert measures.coverage == near(len(labels) / len(rows))
    if measures.state == "no_positives":
        assert average == "binary"
        assert not predicted.any()
        assert not labels.any()
        return
    assert measures.f1 == near(float(f1_score(labels, predicted, average=average)))
    assert measures.accuracy == near(float(accuracy_score(labels, predicted)))
    precision = number(precision_score(labels, predicted, **options))
    if average == "weighted" and not set(labels) & set(predicted):
        precision = None  # scikit-learn's nan rule gives 0 when all the weight is on classes that are never predicted
    assert measures.precision == near(precision)
    assert measures.recall == near(number(recall_score(labels, predicted, **options)))
    if average == "binary":
        specificity = recall_score(labels, predicted, pos_label=0, zero_division=np.nan)
        assert measures.specificity == near(number(specificity))


@unhurried
@given(rows=draw_rows(3).filter(lambda rows: any(row[2] >= 0 for row in rows)), average=st.sampled_from(AVERAGES[1:]))
def test_specificity_is_averaged_over_the_classes_where_it_is_defined(rows: Rows, average: F1Average) -> None:
    _, predicted, labels = known_rows(rows)
    others = [np.sum(labels != c) for c in range(3)]
    refused = [np.sum((labels != c) & (predicted != c)) for c in range(3)]
    weights = [np.sum(labels == c) if average == "weighted" else 1 for c in range(3)]
    kept = [c for c in range(3) if others[c] and weights[c]]

    specificity = measure_rows(rows, 3, average).specificity

    if average == "micro":
        assert specificity == near(sum(refused) / sum(others))
    elif kept:
        ratios = [refused[c] / others[c] for c in kept]
        assert specificity == near(float(np.average(ratios, weights=[weights[c] for c in kept])))
    else:
        assert specificity is None


@settings(max_examples=20, deadline=None)  # each asks scikit-learn a hundred times
@given(rows=draw_rows(2).filter(lambda rows: {row[2] for row in rows} >= {0, 1}), average=st.sampled_from(AVERAGES))
def test_thresholds_are_rated_as_scikit_learn_rates_their_decisions(rows: Rows, average: F1Average) -> None:
    scores, predicted, labels = known_rows(rows)

    measures = measure_rows(rows, 2, average)

    expected = [float(f1_score(labels, scores >= b / BINS, average=average)) for b in range(BINS)]
    served = float(f1_score(labels, predicted, average=average))
    assert measures.f1_by_threshold == near(expected)
    assert measures.best_threshold is not None
    at_best = f1_score(labels, scores >= measures.best_threshold, average=average)
    assert [measures.best_threshold_f1, float(at_best)] == near([max(expected)] * 2)
    assert measures.regret == near(max(expected) - served)


@unhurried
@given(rows=draw_rows(2).filter(lambda rows: any(row[2] >= 0 for row in rows)))
def test_brier_score_is_exact(rows: Rows) -> None:
    scores, _, labels = known_rows(rows)

    measures = measure_rows(rows, 2, "macro")

    assert measures.brier == pytest.approx(float(brier_score_loss(labels, scores, pos_label=1)), abs=1e-12)


def expected_ece(scores: NDArray[np.float64], outcomes: NDArray[np.bool_]) -> float:
    bins = [(scores >= b / 10) & ((scores < (b + 1) / 10) | (b == 9)) for b in range(10)]
    errors = [mask.mean() * abs(scores[mask].mean() - outcomes[mask].mean()) for mask in bins if mask.any()]
    return float(sum(errors))


@unhurried
@given(rows=draw_rows(2).filter(lambda rows: any(row[2] >= 0 for row in rows)))
def test_calibration_error_of_two_classes_is_about_the_positive_one(rows: Rows) -> None:
    scores, _, labels = known_rows(rows)

    assert measure_rows(rows, 2, "macro").ece == near(expected_ece(scores, labels == 1))


@unhurried
@given(rows=draw_rows(3).filter(lambda rows: any(row[2] >= 0 for row in rows)))
def test_calibration_error_of_more_classes_is_about_the_predicted_one(rows: Rows) -> None:
    scores, predicted, labels = known_rows(rows)

    measures = measure_rows(rows, 3, "macro")

    assert measures.ece == near(expected_ece(scores, labels == predicted))
    assert {measures.brier, measures.auc, measures.best_threshold, measures.regret} == {None}
    assert measures.f1_by_threshold is None


@unhurried
@given(rows=draw_rows(2).filter(lambda rows: {row[2] for row in rows} >= {0, 1}))
def test_auc_is_that_of_the_bins(rows: Rows) -> None:
    scores, _, labels = known_rows(rows)
    lower_edges = np.searchsorted(np.arange(BINS) / BINS, scores, side="right")

    assert measure_rows(rows, 2, "macro").auc == near(float(roc_auc_score(labels, lower_edges)))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.5, 0.5), (2, 5), (1, 9)])
def test_auc_is_near_that_of_the_scores(alpha: float, beta: float) -> None:
    chance = np.random.default_rng(0)
    scores = chance.beta(alpha, beta, 20_000)
    labels = (chance.random(20_000) < scores).astype(int)
    cells = count_cells(scores, scores >= 0.5, labels)

    assert measure(cells, 2, 1, "binary", 50).auc == pytest.approx(float(roc_auc_score(labels, scores)), abs=0.001)


@unhurried
@given(drawn=labelled_rows())
def test_baseline_is_the_best_f1_of_a_constant_prediction(drawn: tuple[int, F1Average, Rows]) -> None:
    classes, average, rows = drawn
    _, _, labels = known_rows(rows)
    candidates = [1] if average == "binary" else range(classes)

    measures = measure_rows(rows, classes, average)

    constants = [f1_score(labels, np.full_like(labels, c), average=average, zero_division=0) for c in candidates]
    if measures.state != "no_positives":
        assert measures.baseline_f1 == near(float(max(constants)))


@unhurried
@given(drawn=labelled_rows())
def test_encoded_measures_have_no_nan_and_f1_has_bounds_around_it(drawn: tuple[int, F1Average, Rows]) -> None:
    classes, average, rows = drawn

    measures = measure_rows(rows, classes, average)

    decoded = msgspec.json.decode(msgspec.json.encode(measures), type=Measures)
    assert decoded == measures
    if measures.f1 is not None:
        assert measures.f1_lower is not None
        assert measures.f1_upper is not None
        assert 0 <= measures.f1_lower <= measures.f1 <= measures.f1_upper <= 1


def test_positive_class_may_be_the_first() -> None:
    cells = count_cells([0.9, 0.8, 0.3, 0.2], [0, 0, 1, 1], [0, 1, 0, 1])

    measures = measure(cells, 2, 0, "binary", 1)

    assert (measures.f1, measures.precision, measures.auc) == (0.5, 0.5, 0.75)
    assert measures.brier == near((0.1**2 + 0.8**2 + 0.7**2 + 0.2**2) / 4)


def test_best_threshold_is_in_the_middle_of_equals() -> None:
    measures = measure_rows([(0.305, 1, 0), (0.705, 1, 1)], 2, "binary")

    assert (measures.best_threshold, measures.best_threshold_f1) == (0.51, 1)
    assert measures.regret == near(1 - 2 / 3)


NUMBERS = [name for name in Measures.__struct_fields__ if name not in Measures.__struct_fields__[:6]]


@pytest.mark.parametrize(
    ("rows", "average", "state"),
    [
        ([], "binary", "no_predictions"),
        ([], "macro", "no_predictions"),
        (make_rows({}, unlabelled=90), "binary", "no_labels"),
        (make_rows({}, unlabelled=90), "micro", "no_labels"),
        (make_rows({(0, 0): 90}, unlabelled=9), "binary", "no_positives"),
    ],
)
def test_numbers_are_none_when_there_is_no_f1(rows: Rows, average: F1Average, state: str) -> None:
    measures = measure_rows(rows, 2, average, min_labels=50)

    assert measures.state == state
    assert [getattr(measures, name) for name in NUMBERS] == [None] * len(NUMBERS)
    assert measures.coverage == (None if not rows else near(sum(row[2] >= 0 for row in rows) / len(rows)))


@pytest.mark.parametrize(
    ("confusion", "average", "state"),
    [
        ({(1, 1): 2, (1, 0): 1}, "binary", "one_class"),
        ({(0, 1): 60, (0, 0): 1}, "binary", "one_class"),
        ({(0, 0): 60}, "weighted", "one_class"),
        ({(0, 0): 48, (1, 1): 1}, "binary", "too_few_labels"),
        ({(0, 0): 49, (1, 1): 1}, "binary", "ok"),
        ({(0, 0): 49, (1, 0): 1}, "binary", "ok"),
    ],
)
def test_state_is_the_first_that_holds(confusion: dict[tuple[int, int], int], average: F1Average, state: str) -> None:
    assert measure_rows(make_rows(confusion), 2, average, min_labels=50).state == state


def test_a_model_that_finds_no_positive_has_f1_0_with_an_upper_bound() -> None:
    measures = measure_rows(make_rows({(0, 0): 90, (1, 0): 10}, unlabelled=100), 2, "binary", min_labels=50)

    assert (measures.state, measures.f1, measures.f1_lower, measures.recall) == ("ok", 0, 0, 0)
    assert measures.f1_upper == near(2 * 3.841458820694124 / (10 + 2 * 3.841458820694124))
    assert measures.precision is None
    assert measures.corrected_f1 == 0


def test_with_labels_of_one_class_what_is_defined_is_given() -> None:
    measures = measure_rows(make_rows({(1, 1): 60, (1, 0): 20}), 2, "binary", min_labels=50)

    assert (measures.state, measures.recall, measures.precision) == ("one_class", 0.75, 1)
    assert measures.f1 == near(6 / 7)
    assert measures.specificity is measures.auc is measures.best_threshold is measures.regret is None
    assert measures.baseline_f1 == 1


def test_cells_that_have_come_to_nothing_do_not_count() -> None:
    cells = count_cells([0.9, 0.1], [1, 0], [1, 0])
    nothing = 0 * cells.score_sums
    emptied = dataclasses.replace(cells, rows=0 * cells.rows, score_sums=nothing, score_square_sums=nothing)

    assert measure(emptied, 2, 1, "binary", 50) == measure_rows([], 2, "binary", 50)


def test_every_number_and_state_is_explained() -> None:
    page = (Path(__file__).parents[1] / "docs" / "quality.md").read_text()
    names = {name for name in Measures.__struct_fields__ if name not in {"state", "average", "predictions", "labelled"}}

    explained = set(re.findall(r"`([a-z0-9_]+)`", page))

    assert explained >= names | set(get_args(QualityState))
