"""What the ledger counts: rows by bin of the score, predicted class and label."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 100
"""Bin b holds b/BINS <= score < (b+1)/BINS, the last one 1.0 too: `score >= threshold` at a bin's edge is exact."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows of one version over one window, counted by bin of the score, predicted class and label: arrays (k,).

    A cell without label counts every prediction of its bin and class; the labelled ones count again under their label.
    """

    bins: NDArray[np.int64]
    """0 .. BINS-1, of the positive class's probability (two classes) or the predicted class's (more)."""
    predicted: NDArray[np.int64]
    """Index of the predicted class, which the bin does not tell: the model decides by its own rule."""
    labels: NDArray[np.int64]
    """Index of the label's class; -1: all predictions of this bin and class, labelled or not."""
    rows: NDArray[np.int64]
    score_sums: NDArray[np.float64]
    score_square_sums: NDArray[np.float64]

    def select(self, mask: NDArray[np.bool_]) -> "Cells":
        """Return the cells that `mask` (k,) names."""
        return Cells(
            self.bins[mask],
            self.predicted[mask],
            self.labels[mask],
            self.rows[mask],
            self.score_sums[mask],
            self.score_square_sums[mask],
        )
