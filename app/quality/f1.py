"""F1 from a confusion matrix: pure arithmetic, equal to scikit-learn's `f1_score` on the rows that were counted."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.settings import F1Average

Confusion = Mapping[str, Mapping[str, int]]
"""Rows by label, then by predicted class: `confusion[label][predicted]`. Classes without rows may be absent."""


def choose_average(asked: F1Average | None, classes: int) -> F1Average:
    """Return `asked`; when it is None, or binary where that cannot be, return binary for two classes, else macro."""
    if asked is None or (asked == "binary" and classes != 2):
        return "binary" if classes == 2 else "macro"
    return asked


def compute_f1(confusion: Confusion, average: F1Average, positive_class: str | None) -> float | None:
    """Return F1, None where it is undefined: no row, or for `binary` no positive row, labelled or predicted.

    Per class F1 = 2 TP / (2 TP + FP + FN); `macro` is its mean over the classes that occur, `weighted` the mean by
    number of labels, `micro` pools the counts, which for single-label rows is the accuracy (scikit-learn, f1_score).
    """
    classes = sorted({*confusion, *(predicted for row in confusion.values() for predicted in row)})
    matrix = confusion_matrix(confusion, classes)
    hits = matrix.diagonal().astype(np.float64)
    labelled, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    occurring = labelled + predicted > 0
    if not occurring.any():
        return None
    if average == "micro":
        return float(hits.sum() / matrix.sum())
    if average == "binary":
        occurring &= np.array([name == positive_class for name in classes])
        if not occurring.any():
            return None
    scores = 2 * hits[occurring] / (labelled + predicted)[occurring]
    if average == "weighted":
        return float(np.average(scores, weights=labelled[occurring]))
    return float(scores.mean())


def confusion_matrix(confusion: Confusion, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return counts (n_classes, n_classes): row = label, column = predicted class."""
    counts = [[confusion.get(label, {}).get(predicted, 0) for predicted in classes] for label in classes]
    return np.array(counts, dtype=np.int64).reshape(len(classes), len(classes))
