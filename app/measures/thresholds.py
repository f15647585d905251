"""What other thresholds would do: F1 at every bin's edge, and the AUC over all of them. Two classes only."""

import numpy as np
from numpy.typing import NDArray

from app.measures.cells import BINS, Cells
from app.measures.f1 import Array, average_f1
from app.settings import F1Average


def count_outcomes(labelled: Cells, positive: int) -> NDArray[np.int64]:
    """Return rows (2, BINS) by bin of the score: labelled negative, labelled positive."""
    outcomes = np.zeros((2, BINS), dtype=np.int64)
    np.add.at(outcomes, ((labelled.labels == positive).astype(np.int64), labelled.bins), labelled.rows)
    return outcomes


def f1_by_threshold(outcomes: NDArray[np.int64], average: F1Average) -> Array:
    """Return F1 (BINS,) if rows with score >= b/BINS were predicted positive, b = 0 .. BINS-1; NaN where undefined."""
    above = np.cumsum(outcomes[:, ::-1], axis=1)[:, ::-1]
    below = outcomes.sum(axis=1, keepdims=True) - above
    matrices = np.stack([below, above], axis=-1).swapaxes(0, 1)
    return average_f1(matrices, average, 1)


def find_best(f1: Array) -> int:
    """Return the bin at whose edge F1 is highest; of several such bins the one in the middle."""
    best = np.flatnonzero(f1 == np.nanmax(f1))
    return int(best[len(best) // 2])


def compute_auc(outcomes: NDArray[np.int64]) -> float:
    """Return the share of (positive, negative) pairs that the score orders rightly; a pair in one bin counts half.

    This is Mann and Whitney's U over the number of pairs, with the bin for the score.
    """
    negatives, positives = outcomes.astype(np.float64)
    lower = np.cumsum(negatives) - negatives / 2
    return float(positives @ lower / (positives.sum() * negatives.sum()))
