"""F1 at other thresholds, the edges of the bins, and the AUC. Two classes only."""

import numpy as np
from numpy.typing import NDArray

from app.measures.cells import BINS, Cells
from app.measures.f1 import Array, average_f1
from app.settings import F1Average


def count_outcomes(labelled: Cells, positive: int) -> NDArray[np.int64]:
    """Return numbers of rows (2, BINS) by bin of the score: with a negative label, with a positive label."""
    outcomes = np.zeros((2, BINS), dtype=np.int64)
    np.add.at(outcomes, ((labelled.labels == positive).astype(np.int64), labelled.bins), labelled.rows)
    return outcomes


def f1_by_threshold(outcomes: NDArray[np.int64], average: F1Average) -> Array:
    """Return F1 (BINS,) with the thresholds b/BINS, b = 0 .. BINS-1: score >= threshold is positive; NaN: undefined."""
    above = np.cumsum(outcomes[:, ::-1], axis=1)[:, ::-1]
    below = outcomes.sum(axis=1, keepdims=True) - above
    matrices = np.stack([below, above], axis=-1).swapaxes(0, 1)
    return average_f1(matrices, average, 1)


def find_best(f1: Array) -> int:
    """Return the bin with the best F1 at its lower edge; of several such bins, the one in the middle."""
    best = np.flatnonzero(f1 == np.nanmax(f1))
    return int(best[len(best) // 2])


def count_joint(labelled: Cells, positive: int, threshold_bin: int) -> NDArray[np.int64]:
    """Return labelled rows (2, 2, 2) by label, class served, and class at the lower edge of a bin as the threshold."""
    candidate = np.where(labelled.bins >= threshold_bin, positive, 1 - positive)
    joint = np.zeros((2, 2, 2), dtype=np.int64)
    np.add.at(joint, (labelled.labels, labelled.predicted, candidate), labelled.rows)
    return joint


def compute_auc(outcomes: NDArray[np.int64]) -> float:
    """Return the share of (positive, negative) pairs in which the positive row has the higher score; a tie counts half.

    This is Mann and Whitney's U divided by the number of pairs, computed on the bins of the scores.
    """
    negatives, positives = outcomes.astype(np.float64)
    lower = np.cumsum(negatives) - negatives / 2
    return float(positives @ lower / (positives.sum() * negatives.sum()))
