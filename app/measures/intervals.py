"""95 % bounds of F1 from a confusion matrix; the methods were chosen by simulating how often they cover the true F1.

Coverage of these bounds in simulations of 20,000 draws, with 50, 200 and 1,000 labels, 2 to 5 classes from balanced to
30 to 1, and F1 from 0.2 to 0.995 (`tests/test_intervals.py` has the table):

- `binary`, `micro`, `weighted`: 93.6 to 97.3 % where three or more errors are expected. With fewer, `binary` and
  `micro` fall to 91.3 % in places, like Wilson's bounds in general, and `weighted` rises to 98.5 %.
- `macro`: 94.2 to 97.5 % with 200 labels or more, 98.2 % where errors are few; 91.3 to 98.4 % with 50 labels. The
  lowest value is for five unequal classes, where the upper bound is too low.

Macro F1 and its bounds use only the classes that occur in the window.
"""

from typing import assert_never

import numpy as np

from app.measures.f1 import Array, Matrices, average_f1, count_classes, divide
from app.settings import F1Average

Z = 1.959963984540054
"""Normal quantile of 97.5 %."""

Z_ONE_SIDED = 1.6448536269514722
"""Normal quantile of 95 %."""

FEW_ERRORS = 5
"""Up to this number of errors, a Poisson distribution fits it better than a normal one."""

CLASSES_TOGETHER = 256
"""Rows of a matrix that are multiplied at once: a few milliseconds for 3,000 classes."""

Bounds = tuple[Array, Array]


def bound_f1(matrices: Matrices, average: F1Average, positive: int | None) -> Bounds:
    """Return the lower and upper 95 % bounds (...) of `average_f1`: in [0, 1], around F1, NaN where F1 is NaN.

    `binary`: Wilson's bounds of the Jaccard index J = TP / (TP + FP + FN), mapped by F1 = 2J / (1 + J).
    `micro`: Wilson's bounds of the accuracy.
    `weighted`: Wilson's bounds with an effective number of rows: the number with which a share equal to F1 has the
    variance that the delta method of the multinomial gives for F1.
    `macro`: the wider of two bounds: the same as for `weighted`, and the bounds of each class combined by MOVER. The
    first alone ignores how little is known about a rare class (63 % coverage); the second alone adds skewed distances
    as if they were normal (88 %).
    """
    f1 = average_f1(matrices, average, positive)
    match average:
        case "binary":
            hits, labelled, predicted = count_classes(matrices)
            lower, upper = (bound[..., positive] for bound in _bound_classes(hits, labelled + predicted - hits))
        case "micro":
            lower, upper = wilson(f1, matrices.sum(axis=(-2, -1)))
        case "weighted":
            lower, upper = _bound_weighted(matrices, f1)
        case "macro":
            lower, upper = _bound_macro(matrices, f1)
        case _:
            assert_never(average)
    return np.clip(np.minimum(lower, f1), 0, 1), np.clip(np.maximum(upper, f1), 0, 1)


def _bound_classes(hits: Array, involved: Array) -> Bounds:
    """Bound the F1 of each class: `involved` is TP + FP + FN; the bounds are 0 and 1 where it is 0."""
    lower, upper = wilson(divide(hits, involved, 0), involved)
    return 2 * lower / (1 + lower), 2 * upper / (1 + upper)


def wilson(share: Array, rows: Array) -> Bounds:
    """Return Wilson's bounds of a share of `rows` (Wilson 1927), in a form that gives 0 and 1 for no rows."""
    centre = share * rows + Z**2 / 2
    reach = Z * np.sqrt(share * (1 - share) * rows + Z**2 / 4)
    return (centre - reach) / (rows + Z**2), (centre + reach) / (rows + Z**2)


def _bound_weighted(matrices: Matrices, f1: Array) -> Bounds:
    """Bound weighted F1 from its variance."""
    return _wilson_effective(f1, weighted_variance(matrices), matrices.sum(axis=(-2, -1)).astype(np.float64))


def weighted_variance(matrices: Matrices) -> Array:
    """Return the variance (...) of weighted F1 by the delta method; the weights depend on the labels too.

    The derivative by the cell (i, j) is by_label[i] - lost[j], and for i = j more by gained[i]. The sum of its squares
    is written out, so that no array of the matrices' size is made.
    """
    hits, labelled, predicted = count_classes(matrices)
    rows = labelled.sum(axis=-1, keepdims=True)
    scores, shares = divide(2 * hits, labelled + predicted, 0), divide(labelled, rows, 0)
    of_weights = (scores - (shares * scores).sum(axis=-1, keepdims=True)) / np.maximum(rows, 1)
    lost = divide(shares * scores, labelled + predicted, 0)
    gained = divide(2 * shares, labelled + predicted, 0)
    by_label = of_weights - lost
    squares = by_label**2 * labelled + lost**2 * predicted + hits * gained * (2 * (by_label - lost) + gained)
    variance: Array = np.maximum(squares.sum(axis=-1) - 2 * _multiply(by_label, matrices, lost), 0)
    return variance


def _multiply(left: Array, matrices: Matrices, right: Array) -> Array:
    """Return left' M right (...); a large matrix in parts, between which other threads can run."""
    parts = [slice(start, start + CLASSES_TOGETHER) for start in range(0, left.shape[-1], CLASSES_TOGETHER)]
    products = [np.einsum("...i,...ij,...j->...", left[..., part], matrices[..., part, :], right) for part in parts]
    return np.asarray(sum(products), dtype=np.float64)


def _bound_macro(matrices: Matrices, f1: Array) -> Bounds:
    """Bound macro F1 from the variance of the mean and from the bounds of each class; return the wider bounds.

    The bounds of the classes are combined with their correlations by MOVER (Zou and Donner 2008, sec. 2).
    """
    hits, labelled, predicted = count_classes(matrices)
    sizes = labelled + predicted
    weights = divide((sizes > 0).astype(np.float64), (sizes > 0).sum(axis=-1, keepdims=True), 0)
    lower, upper = _wilson_effective(f1, sum_variance(matrices, weights), labelled.sum(axis=-1))

    scores, (lowest, highest) = divide(2 * hits, sizes, 0), _bound_classes(hits, sizes - hits)
    below = np.sqrt(_combine(weights * (scores - lowest), matrices))
    above = np.sqrt(_combine(weights * (highest - scores), matrices))
    return np.minimum(lower, f1 - below), np.maximum(upper, f1 + above)


def sum_variance(matrices: Matrices, weights: Array) -> Array:
    """Return the variance (...) of a weighted sum of the F1 of classes by the delta method: they share errors.

    The covariance of two classes i and j is (M[i, j] + M[j, i]) lost[i] lost[j]; no matrix of covariances is made.
    """
    variances, lost = _vary_classes(matrices)
    total = (weights**2 * variances).sum(axis=-1) + _sum_shared(matrices, weights * lost)
    variance: Array = np.maximum(total, 0)
    return variance


def _combine(distances: Array, matrices: Matrices) -> Array:
    """Return d' R d (...) for the correlations R; a class without variance is correlated only with itself."""
    variances, lost = _vary_classes(matrices)
    scaled = distances * divide(lost, np.sqrt(variances), 0)
    total: Array = np.maximum((distances**2).sum(axis=-1) + _sum_shared(matrices, scaled), 0)
    return total


def _vary_classes(matrices: Matrices) -> tuple[Array, Array]:
    """Return the variance of the F1 of each class, and its loss by one more error, both (..., n_classes)."""
    hits, labelled, predicted = count_classes(matrices)
    sizes = labelled + predicted
    scores = divide(2 * hits, sizes, 0)
    variances = divide(hits * (2 - 2 * scores) ** 2 + (sizes - 2 * hits) * scores**2, sizes**2, 0)
    return variances, divide(scores, sizes, 0)


def _sum_shared(matrices: Matrices, factors: Array) -> Array:
    """Return the sum over all i != j of (M[i, j] + M[j, i]) factors[i] factors[j]."""
    own: Array = (factors**2 * np.diagonal(matrices, axis1=-2, axis2=-1)).sum(axis=-1)
    return 2 * (_multiply(factors, matrices, factors) - own)


def _wilson_effective(f1: Array, variance: Array, rows: Array) -> Bounds:
    """Bound F1 like a share of n rows, where n gives the share this variance; n is `rows` when the variance is 0.

    With few errors, the upper bound uses the Poisson limit of their number (Brown, Cai and DasGupta 2001, sec. 4.1.1),
    with Wilson and Hilferty's approximation of its quantile.
    """
    effective = divide(f1 * (1 - f1), variance, 0)
    effective = np.where(effective > 0, effective, rows)
    lower, upper = wilson(f1, effective)
    errors = np.maximum(effective * (1 - f1), 1e-9)
    fewest = errors * np.maximum(1 - 1 / (9 * errors) - Z_ONE_SIDED / (3 * np.sqrt(errors)), 0) ** 3
    return lower, np.where(errors <= FEW_ERRORS, np.maximum(upper, 1 - fewest / effective), upper)
