"""F1 when labels come for some predictions rather than for others: post-stratified by bin and predicted class."""

import numpy as np
from numpy.typing import NDArray

from app.measures.cells import BINS, Cells
from app.measures.f1 import Array


def correct_confusion(every: Cells, labelled: Cells, classes: int) -> Array | None:
    """Estimate the confusion matrix (classes, classes) of all predictions; None if a predicted class has no label.

    Within a stratum (bin, predicted class) labels are taken to come at random: each stands for predictions / labelled
    rows of it (post-stratification; Lohr, Sampling, sec. 4.4). Exact in expectation when arrival depends on nothing
    but score and predicted class.
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
    """Give predictions (BINS,) to the bins that have labels, (k,) in and out.

    A bin without labels goes to the nearest with some, on both sides in proportion to nearness: as if the shares of
    the labels were interpolated between them.
    """
    position = np.interp(np.arange(BINS), known, np.arange(known.size))
    left = position.astype(np.int64)
    nearness = position - left
    right = np.minimum(left + 1, known.size - 1)
    shared = np.zeros(known.size)
    np.add.at(shared, left, predictions * (1 - nearness))
    np.add.at(shared, right, predictions * nearness)
    return shared
