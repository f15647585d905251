"""The difference of two F1 on the same rows: much better known than each of them, because they share most rows."""

import numpy as np
from numpy.typing import NDArray

from app.measures.f1 import Array, average_f1, count_classes, divide
from app.settings import F1Average


def compare_f1(joint: NDArray[np.int64], average: F1Average, positive: int | None) -> tuple[float, float]:
    """Return F1 of a candidate minus F1 of what was served, and the standard deviation of this difference.

    `joint` (2, 2, 2) has labelled rows by label, class served and class of the candidate. The deviation is the delta
    method's for a multinomial; half a row is added to each cell in which the two differ, in the variance only, so that
    it covers when few rows differ: 94.8 to 100 % in simulations of 50 to 5,000 rows, against 74.8 % without.
    """
    served, candidate = joint.sum(axis=2), joint.sum(axis=1)
    difference = average_f1(candidate, average, positive) - average_f1(served, average, positive)
    slope = _f1_slope(candidate, average, positive)[:, None, :] - _f1_slope(served, average, positive)[:, :, None]
    differs = ~np.eye(2, dtype=bool)
    variance = ((joint + differs / 2) * slope**2).sum()
    return float(difference), float(np.sqrt(variance))


def _f1_slope(matrix: NDArray[np.int64], average: F1Average, positive: int | None) -> Array:
    """Return the derivative (n, n) of `average_f1` by the rows of each cell of a confusion matrix (n, n)."""
    hits, labelled, predicted = count_classes(matrix)
    sizes, rows = labelled + predicted, labelled.sum()
    scores, diagonal = divide(2 * hits, sizes, 0), np.eye(len(matrix))
    if average == "micro":
        slope: Array = (diagonal - hits.sum() / rows) / rows
        return slope
    gained, lost = divide(np.full(len(sizes), 2.0), sizes, 0), divide(scores, sizes, 0)
    # by_class[c] is the derivative of class c's F1, whose row and column count c's labels and predictions.
    by_class = diagonal[:, :, None] * diagonal[:, None, :] * gained[:, None, None]
    by_class = by_class - lost[:, None, None] * (diagonal[:, :, None] + diagonal[:, None, :])
    if average == "binary":
        slope = by_class[positive]
    elif average == "macro":
        slope = by_class[sizes > 0].mean(axis=0)
    else:
        shares = labelled / rows
        slope = (shares[:, None, None] * by_class).sum(axis=0) + ((scores - shares @ scores) / rows)[:, None]
    return slope
