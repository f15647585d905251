"""Compute all quality numbers of one version over one window from its cells; `docs/quality.md` explains them."""

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.measures.calibration import compute_brier, compute_ece
from app.measures.cells import BINS, Cells
from app.measures.f1 import Array, average_f1, average_ratios, count_classes
from app.measures.intervals import bound_f1
from app.measures.label_bias import correct_confusion
from app.measures.paired import compare_f1
from app.measures.thresholds import compute_auc, count_joint, count_outcomes, f1_by_threshold, find_best
from app.settings import F1Average

CERTAIN_DEVIATIONS = 3
"""From which number of standard deviations a gain is certain, although the best of a hundred thresholds was chosen."""

QualityState = Literal["no_predictions", "no_labels", "no_positives", "one_class", "too_few_labels", "ok"]
"""Why the numbers are missing or weak, or `ok`. The state is the first of these that is true:

- no_predictions, no_labels: nothing is known; every number is None.
- no_positives: `binary` F1 is undefined, because no row has a positive label or prediction; every number is None.
- one_class: all labels are of the same class. Some numbers are undefined, and none shows how well the model separates
  the classes.
- too_few_labels: fewer labels than MIN_LABELS; the bounds are wide.

one_class comes before too_few_labels because `labelled` shows too how many labels there are; only the state shows that
they are all of the same class.
"""


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """The quality of one version over one window; undefined numbers are None, never NaN."""

    state: QualityState
    average: F1Average
    predictions: int
    labelled: int
    coverage: float | None
    confusion: list[list[int]]
    """Labelled rows: `confusion[label][predicted]`."""
    f1: float | None = None
    f1_lower: float | None = None
    f1_upper: float | None = None
    corrected_f1: float | None = None
    baseline_f1: float | None = None
    precision: float | None = None
    recall: float | None = None
    specificity: float | None = None
    accuracy: float | None = None
    ece: float | None = None
    brier: float | None = None
    """This and all fields below: two classes only."""
    auc: float | None = None
    best_threshold: float | None = None
    best_threshold_f1: float | None = None
    regret: float | None = None
    """best_threshold_f1 - f1. Negative when the model's own threshold lies between two edges and gives a better F1."""
    regret_is_certain: bool | None = None
    """Whether the regret is over CERTAIN_DEVIATIONS standard deviations. False: chance may explain it."""
    f1_by_threshold: list[float | None] | None = None
    """F1 at the thresholds b / BINS, b = 0 .. BINS-1."""


def measure(cells: Cells, classes: int, positive: int | None, average: F1Average, min_labels: int) -> Measures:
    """Compute every number that is defined; `positive` is the index of the positive class, None without two classes."""
    every, labelled = cells.select(cells.labels < 0), cells.select(cells.labels >= 0)
    matrix = _count_confusion(labelled, classes)
    predictions, labels = int(every.rows.sum()), int(labelled.rows.sum())
    f1 = _defined(average_f1(matrix, average, positive))
    known = Measures(
        state=_name_state(predictions, matrix, f1, min_labels),
        average=average,
        predictions=predictions,
        labelled=labels,
        coverage=labels / predictions if predictions else None,
        confusion=matrix.tolist(),
    )
    if f1 is None or not predictions:
        return known
    lower, upper = bound_f1(matrix, average, positive)
    corrected = correct_confusion(every, labelled, classes)
    return msgspec.structs.replace(
        known,
        f1=f1,
        f1_lower=float(lower),
        f1_upper=float(upper),
        corrected_f1=None if corrected is None else _defined(average_f1(corrected, average, positive)),
        baseline_f1=_constant_f1(matrix, average, positive),
        ece=compute_ece(labelled, positive),
        **_rate_decisions(matrix, average, positive),
        **({} if positive is None else _rate_scores(labelled, positive, average, f1)),
    )


def _count_confusion(labelled: Cells, classes: int) -> NDArray[np.int64]:
    """Return labelled rows (classes, classes): row = label, column = predicted class."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labelled.labels, labelled.predicted), labelled.rows)
    return matrix


def _defined(value: Array) -> float | None:
    """Return a float, None for NaN."""
    return None if np.isnan(value) else float(value)


def _name_state(predictions: int, matrix: NDArray[np.int64], f1: float | None, min_labels: int) -> QualityState:
    """Return the first state that is true."""
    if predictions == 0:
        return "no_predictions"
    if not matrix.any():
        return "no_labels"
    if f1 is None:
        return "no_positives"
    if np.count_nonzero(matrix.sum(axis=1)) == 1:
        return "one_class"
    return "too_few_labels" if matrix.sum() < min_labels else "ok"


def _constant_f1(matrix: NDArray[np.int64], average: F1Average, positive: int | None) -> float:
    """Return the F1 of always predicting the same class: for `binary` the positive one, else the most frequent label.

    A predicted class with the share π of the labels has F1 = 2π / (1 + π), and every other class 0.
    """
    shares = matrix.sum(axis=1) / matrix.sum()
    share = float(shares.max() if average != "binary" else shares[positive])
    f1 = 2 * share / (1 + share)
    return {"binary": f1, "micro": share, "weighted": share * f1, "macro": f1 / int(np.count_nonzero(shares))}[average]


def _rate_decisions(matrix: NDArray[np.int64], average: F1Average, positive: int | None) -> dict[str, float | None]:
    """Compute precision, recall and specificity by `average`, and accuracy."""
    hits, labelled, predicted = count_classes(matrix)
    rows = labelled.sum()
    others, false = rows - labelled, predicted - hits
    return {
        "precision": _defined(average_ratios(hits, predicted, labelled, average, positive)),
        "recall": _defined(average_ratios(hits, labelled, labelled, average, positive)),
        "specificity": _defined(average_ratios(others - false, others, labelled, average, positive)),
        "accuracy": float(hits.sum() / rows),
    }


def _rate_scores(labelled: Cells, positive: int, average: F1Average, served_f1: float) -> dict[str, object]:
    """Compute the numbers about the scores of two classes; AUC and the best threshold need labels of both classes."""
    outcomes = count_outcomes(labelled, positive)
    curve = f1_by_threshold(outcomes, average)
    rated: dict[str, object] = {
        "brier": compute_brier(labelled, positive),
        "f1_by_threshold": [_defined(f1) for f1 in curve],
    }
    if outcomes.any(axis=1).all():
        best = find_best(curve)
        best_f1 = float(curve[best])
        gain, deviation = compare_f1(count_joint(labelled, positive, best), average, positive)
        rated |= {"regret_is_certain": gain > CERTAIN_DEVIATIONS * deviation}
        rated |= {"auc": compute_auc(outcomes), "best_threshold": best / BINS}
        rated |= {"best_threshold_f1": best_f1, "regret": best_f1 - served_f1}
    return rated
