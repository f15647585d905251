"""Read probabilities from a graph's output: a matrix, a ZipMap, one column for two classes, or logits."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving.signature import Signature

Float32 = NDArray[np.float32]

TOLERANCE = 0.01
"""How far outside 0 to 1 a probability may lie, and its row's sum from 1: float32 arithmetic is not exact."""

SMALL_SIZE = 4
"""Up to this many values Python's arithmetic is faster than numpy's calls: 1 us for a row of two classes, not 4."""


def read_probabilities(output: Any, signature: Signature) -> Float32:
    """Return float32 (n, n_classes). A single column has the probabilities of the graph's second class.

    Raises KeyError when a ZipMap lacks a class.
    """
    return turn_into_probabilities(read_values(output, signature), signature)


def read_values(output: Any, signature: Signature) -> NDArray[Any]:
    """Return the output's values as a matrix, as the graph gives them; raise KeyError when a ZipMap lacks a class."""
    if signature.probabilities_are_maps:
        output = [[row[name] for name in signature.classes] for row in output]
    answer = np.asarray(output)
    # A Squeeze may have removed even the dimension of the rows.
    return answer.reshape(-1, 1) if answer.ndim < 2 or answer.shape[1] == 1 else answer


def turn_into_probabilities(answer: NDArray[Any], signature: Signature) -> Float32:
    """Turn the values of a graph (n, columns) into float32 (n, n_classes), in the order of the classes."""
    if signature.has_mirrored_logits:
        answer = answer[:, 1:]  # of [-s, s]: s is the logit of the second class
    if answer.shape[1] == 1:
        answer = np.hstack([np.zeros_like(answer) if signature.are_logits else 1 - answer, answer])
    if signature.are_logits:
        answer = compute_softmax(answer)
    if signature.class_columns is not None:
        answer = answer[:, signature.class_columns]
    return answer.astype(np.float32, copy=False)


def compute_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits (n, n_classes) of any size into probabilities whose rows sum to 1; rows not finite are NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def are_probabilities(values: Float32) -> bool:
    """Return whether every row (n, n_classes) has finite values from 0 to 1 that sum to 1, within the tolerance."""
    # A comparison with NaN is false.
    if values.size <= SMALL_SIZE:
        return all(min(row) >= -TOLERANCE and abs(sum(row) - 1) <= TOLERANCE for row in values.tolist())
    # The sum of squares over all rows is stricter than a comparison of each row, and
    # several times as fast.
    if not (values.min() >= -TOLERANCE and values.max() <= 1 + TOLERANCE):
        return False
    excess = values.dot(_ones(values.shape[1])) - 1
    return bool(excess.dot(excess) <= TOLERANCE**2) or not len(find_improper_rows(values))


@cache
def _ones(count: int) -> Float32:
    return np.ones(count, np.float32)


def find_improper_rows(values: NDArray[Any]) -> NDArray[np.intp]:
    """Return the indices of finite rows (n, n_classes) that are no probabilities."""
    with np.errstate(all="ignore"):
        is_off = np.abs(values.sum(axis=1) - 1) > TOLERANCE
    is_outside = (values.min(axis=1) < -TOLERANCE) | (values.max(axis=1) > 1 + TOLERANCE)
    return np.flatnonzero((is_off | is_outside) & np.isfinite(values).all(axis=1))
