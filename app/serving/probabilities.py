"""Probabilities in what a graph answers: a matrix, ZipMap, one column for two classes, or logits in their place."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving.signature import Signature

Float32 = NDArray[np.float32]


def read_probabilities(output: Any, signature: Signature) -> Float32:
    """Return float32 (n, n_classes). One column is of the second class: the first has the rest."""
    if signature.probabilities_are_maps:
        output = [[row[name] for name in signature.classes] for row in output]
    answer = np.asarray(output)
    if answer.ndim < 2 or answer.shape[1] == 1:  # a Squeeze may leave no dimension of one row
        column = answer.reshape(-1, 1)
        answer = np.hstack([np.zeros_like(column) if signature.are_logits else 1 - column, column])
    if signature.are_logits:
        answer = compute_softmax(answer)
    return answer.astype(np.float32, copy=False)


def compute_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits (n, n_classes) into probabilities whose rows sum to 1, however large they are; not finite: NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
