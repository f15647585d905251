"""F1, precision, recall from a confusion matrix: pure arithmetic, equal to scikit-learn's results on the same rows."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.settings import F1Average

Confusion = Mapping[str, Mapping[str, int]]
"""Numbers of rows: `confusion[label][predicted class]`. Classes without rows may be missing."""

Matrices = NDArray[np.float64] | NDArray[np.int64]
"""Confusion matrices (..., n_classes, n_classes): row = label, column = predicted class. Counts may be fractions."""

Array = NDArray[np.float64]


def choose_average(asked: F1Average | None, classes: int) -> F1Average:
    """Return `asked` if it is possible; if not, or None, return `binary` for two classes, `macro` for more."""
    if asked is None or (asked == "binary" and classes != 2):
        return "binary" if classes == 2 else "macro"
    return asked


def compute_f1(confusion: Confusion, average: F1Average, positive_class: str | None) -> float | None:
    """Return F1; None when it is undefined: no row, or for `binary` no row with a positive label or prediction."""
    classes = sorted({*confusion, *(predicted for row in confusion.values() for predicted in row)})
    if average == "binary" and positive_class not in classes:
        return None
    positive = None if positive_class not in classes else classes.index(positive_class)
    f1 = float(average_f1(confusion_matrix(confusion, classes), average, positive))
    return None if np.isnan(f1) else f1


def confusion_matrix(confusion: Confusion, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return counts (n_classes, n_classes): row = label, column = predicted class."""
    counts = [[confusion.get(label, {}).get(predicted, 0) for predicted in classes] for label in classes]
    return np.array(counts, dtype=np.int64).reshape(len(classes), len(classes))


def average_f1(matrices: Matrices, average: F1Average, positive: int | None) -> Array:
    """Return F1 (...), NaN where it is undefined.

    The F1 of a class is 2 TP / (2 TP + FP + FN). `macro` is the mean over the classes that occur, `weighted` the mean
    weighted by numbers of labels, `micro` is F1 of the summed counts, which equals the accuracy when a row has one
    label (scikit-learn, f1_score).
    """
    hits, labelled, predicted = count_classes(matrices)
    return average_ratios(2 * hits, labelled + predicted, labelled, average, positive)


def count_classes(matrices: Matrices) -> tuple[Array, Array, Array]:
    """Return three counts of rows by class (..., n_classes): predicted correctly, with this label, predicted."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)  # no float copy of the matrices: with 3,000 classes it has 72 MB
    return hits.astype(np.float64), *(matrices.sum(axis=axis).astype(np.float64) for axis in (-1, -2))


def average_ratios(hits: Array, out_of: Array, labelled: Array, average: F1Average, positive: int | None) -> Array:
    """Average hits / out_of over the classes (last axis) with out_of > 0; NaN when there is no such class.

    This is scikit-learn's `zero_division=nan`: a class with out_of = 0 is left out instead of counting as 0.
    """
    if average == "micro":
        hits, out_of = hits.sum(axis=-1, keepdims=True), out_of.sum(axis=-1, keepdims=True)
    elif average == "binary":
        assert positive is not None
        hits, out_of = hits[..., [positive]], out_of[..., [positive]]
    weights = (labelled if average == "weighted" else 1.0) * (out_of > 0)
    return divide((divide(hits, out_of, 0) * weights).sum(axis=-1), weights.sum(axis=-1), np.nan)


def divide(numerator: Array, denominator: Array, otherwise: float) -> Array:
    """Divide; where the denominator is zero, the result is `otherwise`."""
    filled = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), otherwise, dtype=np.float64)
    return np.divide(numerator, denominator, out=filled, where=denominator != 0)
