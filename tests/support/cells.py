"""Rows counted into cells, as the ledger does it."""

import numpy as np
from numpy.typing import ArrayLike

from app.measures.cells import BINS, Cells
from app.settings import F1Average

AVERAGES: tuple[F1Average, ...] = ("binary", "macro", "micro", "weighted")


def count_cells(scores: ArrayLike, predicted: ArrayLike, labels: ArrayLike) -> Cells:
    """Count rows: score, index of the predicted class, index of the label's class or -1 without label."""
    score, prediction, label = np.asarray(scores, float), np.asarray(predicted, int), np.asarray(labels, int)
    edges = np.arange(BINS) / BINS
    bins = np.searchsorted(edges, score, side="right") - 1
    every = np.stack([bins, prediction, np.full(len(score), -1)], axis=1)
    known = label >= 0
    keys = np.concatenate([every, np.stack([bins, prediction, label], axis=1)[known]]).astype(np.int64)
    values = np.concatenate([score, score[known]])
    cells, of_cell = np.unique(keys.reshape(-1, 3), axis=0, return_inverse=True)

    def add_up(weights: ArrayLike) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        totals = np.zeros(len(cells))
        np.add.at(totals, of_cell.ravel(), weights)
        return totals

    of_bins, of_predicted, of_labels = cells.T
    return Cells(of_bins, of_predicted, of_labels, add_up(1).astype(np.int64), add_up(values), add_up(values**2))
