"""How far F1 may be off: 95 % bounds from a confusion matrix, chosen by simulation of what they cover.

What 95 % covers here, by simulation: 20,000 draws of 50, 200 and 1,000 labels, 2 to 5 classes from balanced to 30 to 1,
F1 from 0.2 to 0.995 (`tests/test_intervals.py` has the table). `binary`, `micro` and `weighted`: 93.6 to 97.3 % where
three errors or more are expected; with fewer, `binary` and `micro` fall to 91.3 % in places, as Wilson's bounds do, and
`weighted` rises to 98.5 %. `macro`: 94.2 to 97.5 % from 200 labels on, 98.2 % where errors are few; with 50 labels 91.3
to 98.4 %, the least over five unequal classes, whose upper bound is too low then. Macro F1 and its bounds are about the
classes that occur in the window.
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
"""Up to this many, errors are Poisson rather than normal."""

Bounds = tuple[Array, Array]


def bound_f1(matrices: Matrices, average: F1Average, positive: int | None) -> Bounds:
    """Return the lower and upper 95 % bound (...) of `average_f1`: in [0, 1], around it, NaN where it is.

    `binary`: Wilson's bounds of the Jaccard index TP / (TP + FP + FN), mapped by F1 = 2J / (1 + J).
    `micro`: Wilson's bounds of the accuracy.
    `weighted`: Wilson's bounds for as many rows as would give a share of this size the variance that the delta method
    of the multinomial finds for F1.
    `macro`: the wider of that and of the classes' own bounds, combined by MOVER. The first alone does not see how
    little is known of a rare class (63 % covered), the second adds skewed distances as if they were normal (88 %).
    """
    f1 = average_f1(matrices, average, positive)
    match average:
        case "binary":
            hits, labelled, predicted = count_classes(matrices)
            lower, upper = (bound[..., positive] for bound in _bound_classes(hits, labelled + predicted - hits))
        case "micro":
            lower, upper = wilson(f1, matrices.sum(axis=(-2, -1)))
        case "weighted":
            lower, upper = _bound_weighted(matrices.astype(np.float64), f1)
        case "macro":
            lower, upper = _bound_macro(matrices.astype(np.float64), f1)
        case _:
            assert_never(average)
    return np.clip(np.minimum(lower, f1), 0, 1), np.clip(np.maximum(upper, f1), 0, 1)


def _bound_classes(hits: Array, involved: Array) -> Bounds:
    """Bound F1 by class: `involved` = TP + FP + FN; 0 to 1 where that is 0."""
    lower, upper = wilson(divide(hits, involved, 0), involved)
    return 2 * lower / (1 + lower), 2 * upper / (1 + upper)


def wilson(share: Array, rows: Array) -> Bounds:
    """Bound a share of `rows` (Wilson 1927); written so that no rows at all give 0 to 1."""
    centre = share * rows + Z**2 / 2
    reach = Z * np.sqrt(share * (1 - share) * rows + Z**2 / 4)
    return (centre - reach) / (rows + Z**2), (centre + reach) / (rows + Z**2)


def _bound_weighted(matrices: Array, f1: Array) -> Bounds:
    """Bound weighted F1 by its variance."""
    return _wilson_effective(f1, weighted_variance(matrices), matrices.sum(axis=(-2, -1)))


def weighted_variance(matrices: Array) -> Array:
    """Return the delta method's variance (...) of weighted F1, whose weights vary with the labels too."""
    hits, labelled, predicted = count_classes(matrices)
    rows = labelled.sum(axis=-1, keepdims=True)
    scores, shares = divide(2 * hits, labelled + predicted, 0), divide(labelled, rows, 0)
    of_weights = (scores - (shares * scores).sum(axis=-1, keepdims=True)) / np.maximum(rows, 1)
    lost = divide(shares * scores, labelled + predicted, 0)
    gained = np.eye(hits.shape[-1]) * divide(2 * shares, labelled + predicted, 0)[..., None]
    gradient = (of_weights - lost)[..., :, None] - lost[..., None, :] + gained
    variance: Array = (matrices * gradient**2).sum(axis=(-2, -1))
    return variance


def _bound_macro(matrices: Array, f1: Array) -> Bounds:
    """Bound macro F1 by the variance of the mean, and by each class's own bounds; return the wider."""
    hits, labelled, predicted = count_classes(matrices)
    sizes = labelled + predicted
    weights = divide((sizes > 0).astype(np.float64), (sizes > 0).sum(axis=-1, keepdims=True), 0)
    covariance = class_covariance(matrices)
    lower, upper = _wilson_effective(f1, _combine(weights, covariance), labelled.sum(axis=-1))

    scores, (lowest, highest) = divide(2 * hits, sizes, 0), _bound_classes(hits, sizes - hits)
    correlation = _correlate(covariance)
    below = np.sqrt(_combine(weights * (scores - lowest), correlation))
    above = np.sqrt(_combine(weights * (highest - scores), correlation))
    return np.minimum(lower, f1 - below), np.maximum(upper, f1 + above)


def class_covariance(matrices: Array) -> Array:
    """Return the delta method's covariance (..., n_classes, n_classes) of the classes' F1: they share their errors."""
    hits, labelled, predicted = count_classes(matrices)
    sizes = labelled + predicted
    scores = divide(2 * hits, sizes, 0)
    lost = divide(scores, sizes, 0)
    shared = (matrices + np.swapaxes(matrices, -1, -2)) * lost[..., :, None] * lost[..., None, :]
    variances = divide(hits * (2 - 2 * scores) ** 2 + (sizes - 2 * hits) * scores**2, sizes**2, 0)
    return np.where(np.eye(hits.shape[-1], dtype=bool), variances[..., None], shared)


def _correlate(covariance: Array) -> Array:
    """Return correlations; a class without variance is correlated with itself only."""
    deviations = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    correlation = divide(covariance, deviations[..., :, None] * deviations[..., None, :], 0)
    return np.where(np.eye(covariance.shape[-1], dtype=bool), 1.0, correlation)


def _combine(distances: Array, matrices: Array) -> Array:
    """Return the quadratic form d' M d (...); with correlations this is MOVER (Zou and Donner 2008, sec. 2)."""
    combined: Array = np.einsum("...i,...ij,...j->...", distances, matrices, distances)
    return combined


def _wilson_effective(f1: Array, variance: Array, rows: Array) -> Bounds:
    """Bound F1 like a share of as many rows as would give it this variance; `rows` where it has none.

    With few errors the upper bound comes from the Poisson limit of their number (Brown, Cai and DasGupta 2001,
    sec. 4.1.1), whose quantile is Wilson and Hilferty's.
    """
    effective = divide(f1 * (1 - f1), variance, 0)
    effective = np.where(effective > 0, effective, rows)
    lower, upper = wilson(f1, effective)
    errors = np.maximum(effective * (1 - f1), 1e-9)
    fewest = errors * np.maximum(1 - 1 / (9 * errors) - Z_ONE_SIDED / (3 * np.sqrt(errors)), 0) ** 3
    return lower, np.where(errors <= FEW_ERRORS, np.maximum(upper, 1 - fewest / effective), upper)
