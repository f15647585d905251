"""Read probabilities from a graph's output: a matrix, a ZipMap, one column for two classes, or logits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.serving.signature import Signature

Float32 = NDArray[np.float32]


def read_probabilities(output: Any, signature: Signature) -> Float32:
    """Return float32 (n, n_classes). A single column has the probabilities of the second class."""
    if signature.probabilities_are_maps:
        output = [[row[name] for name in signature.classes] for row in output]
    answer = np.asarray(output)
    if answer.ndim < 2 or answer.shape[1] == 1:  # a Squeeze may have removed even the dimension of the rows
        column = answer.reshape(-1, 1)
        answer = np.hstack([np.zeros_like(column) if signature.are_logits else 1 - column, column])
    if signature.are_logits:
        answer = compute_softmax(answer)
    return answer.astype(np.float32, copy=False)


def compute_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Turn logits (n, n_classes) of any size into probabilities whose rows sum to 1; rows not finite are NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
