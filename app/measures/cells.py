"""Cells: what the ledger counts, rows by bin of the score, predicted class and label."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 100
"""Bin b has the scores b/BINS <= score < (b+1)/BINS; the last bin includes 1.0. So `score >= threshold` is exact for a
threshold at a bin's edge."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows of one version over one window, counted by bin of the score, predicted class and label: arrays (k,).

    A cell without a label counts all predictions of its bin and class; those with a label are also in the cell of their
    label.
    """

    bins: NDArray[np.int64]
    """0 .. BINS-1, of the probability of the positive class (two classes) or of the predicted class (more classes)."""
    predicted: NDArray[np.int64]
    """Index of the predicted class. It does not follow from the bin: the model has a decision rule of its own."""
    labels: NDArray[np.int64]
    """Index of the label's class; -1 for all predictions of this bin and class, with or without a label."""
    rows: NDArray[np.int64]
    score_sums: NDArray[np.float64]
    score_square_sums: NDArray[np.float64]

    def select(self, mask: NDArray[np.bool_]) -> "Cells":
        """Return the cells where `mask` (k,) is true."""
        return Cells(
            self.bins[mask],
            self.predicted[mask],
            self.labels[mask],
            self.rows[mask],
            self.score_sums[mask],
            self.score_square_sums[mask],
        )
