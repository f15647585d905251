"""Calibration: Brier score and expected calibration error, exact because cells have the sums of the scores."""

import numpy as np

from app.measures.cells import BINS, Cells

RELIABILITY_BINS = 10
"""With more bins, each would have so few labels that chance alone causes a large error."""


def compute_brier(labelled: Cells, positive: int) -> float:
    """Return the mean of (score - outcome)², where the outcome is 1 for a positive label, else 0 (Brier 1950)."""
    hits = labelled.labels == positive
    squares = labelled.score_square_sums.sum() - 2 * labelled.score_sums[hits].sum() + labelled.rows[hits].sum()
    return max(0.0, float(squares / labelled.rows.sum()))


def compute_ece(labelled: Cells, positive: int | None) -> float:
    """Return the expected calibration error over ten equal bins: mean |mean score - share of hits|, weighted by rows.

    A hit is a positive label; with more than two classes, a right prediction (top-label; Guo et al. 2017).
    """
    hits = labelled.labels == (labelled.predicted if positive is None else positive)
    surplus = labelled.score_sums - labelled.rows * hits
    by_bin = np.bincount(labelled.bins * RELIABILITY_BINS // BINS, weights=surplus)
    return float(np.abs(by_bin).sum() / labelled.rows.sum())
