"""Correct F1 when some predictions are labelled more often than others: post-stratify by bin and predicted class."""

import numpy as np
from numpy.typing import NDArray

from app.measures.cells import BINS, Cells
from app.measures.f1 import Array


def correct_confusion(every: Cells, labelled: Cells, classes: int) -> Array | None:
    """Estimate the confusion matrix (classes, classes) of all predictions; None if a predicted class has no label.

    Assumes that within a stratum (bin, predicted class) labels arrive at random: a labelled row has the weight
    predictions / labelled rows of its stratum (post-stratification; Lohr, Sampling, sec. 4.4). The estimate is unbiased
    when the arrival of labels depends only on the score and the predicted class.
    """
    predictions = _count_strata(every, classes)
    labels = _count_strata(labelled, classes)
    scale = np.zeros((classes, BINS))
    for predicted in np.flatnonzero(predictions.any(axis=1)):
        known = np.flatnonzero(labels[predicted])
        if known.size == 0:
            return None
        scale[predicted, known] = _share_out(predictions[predicted], known) / labels[predicted, known]
    weights = labelled.rows * scale[labelled.predicted, labelled.bins]
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labelled.labels, labelled.predicted), weights)
    return confusion


def _count_strata(cells: Cells, classes: int) -> Array:
    """Return rows (classes, BINS) by predicted class and bin."""
    strata = np.zeros((classes, BINS))
    np.add.at(strata, (cells.predicted, cells.bins), cells.rows)
    return strata


def _share_out(predictions: Array, known: NDArray[np.int64]) -> Array:
    """Distribute predictions (BINS,) to the `known` bins (k,), which have labels; return their predictions (k,).

    The predictions of a bin without labels go to the nearest known bins on both sides, more to the nearer one. This is
    the same as interpolating the shares of the labels between them.
    """
    position = np.interp(np.arange(BINS), known, np.arange(known.size))
    left = position.astype(np.int64)
    nearness = position - left
    right = np.minimum(left + 1, known.size - 1)
    shared = np.zeros(known.size)
    np.add.at(shared, left, predictions * (1 - nearness))
    np.add.at(shared, right, predictions * nearness)
    return shared
