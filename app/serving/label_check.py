"""Compare a graph's label output with its classes and probabilities: some exports return another class's label."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.serving.probabilities import Float32
from app.serving.signature import Signature

NEARLY_EQUAL = 1e-3
"""Two probabilities this close may be rounded either way."""


def doubt_label(signature: Signature, probabilities: Float32, labels: Sequence[Sequence[Any]]) -> str | None:
    """Return why the label output cannot be trusted, None when it can: probabilities (n, n_classes), n labels.

    A label may differ from the likeliest class where a library decides by something else, such as the votes of an SVC
    or a threshold. It must still be a rule of the same classes: with two, the label of one class from a probability
    on; with more, mostly the likeliest class. Classes that no row reached cannot be compared.
    """
    index_of = {name: index for index, name in enumerate(signature.classes)}
    finite = np.flatnonzero(np.isfinite(probabilities).all(axis=1)).tolist()
    if any(len(labels[row]) != 1 for row in finite):
        return "it has not one value per row"
    named = [labels[row][0] for row in finite]
    unknown = next((name for name in named if name not in index_of), None)
    if unknown is not None:
        return f"it says {unknown!r}, which is not a class"
    by_label = np.array([index_of[name] for name in named], dtype=np.intp)
    chances = probabilities[finite]
    likeliest = chances.argmax(axis=1)
    if len(signature.classes) == 2:
        return _doubt_of_two(signature, chances[:, 1], by_label, likeliest)
    return _doubt_of_many(signature, by_label, likeliest)


def _doubt_of_two(signature: Signature, chances: Float32, by_label: Any, likeliest: Any) -> str | None:
    seen, likely = set(by_label.tolist()), set(likeliest.tolist())
    if len(seen) == 1:
        if likely == seen:
            return _describe_reach(signature, seen)
        return f"it says {_show(signature, by_label[0])} for every row, also where the other class is likelier"
    if chances[by_label == 0].max() > chances[by_label == 1].min() + NEARLY_EQUAL:
        return _describe_contradiction(signature, by_label, likeliest)
    return None


def _doubt_of_many(signature: Signature, by_label: Any, likeliest: Any) -> str | None:
    for index in np.unique(likeliest).tolist():
        if np.mean(by_label[likeliest == index] == index) < 0.5:
            return _describe_contradiction(signature, by_label, likeliest)
    reached = set(likeliest.tolist())
    return None if len(reached) == len(signature.classes) else _describe_reach(signature, reached)


def _describe_contradiction(signature: Signature, by_label: Any, likeliest: Any) -> str:
    row = np.flatnonzero(by_label != likeliest)[0]
    return f"it says {_show(signature, by_label[row])} where {_show(signature, likeliest[row])} is likelier"


def _describe_reach(signature: Signature, reached: set[int]) -> str:
    return f"the rows that were tried reach {len(reached)} of {len(signature.classes)} classes"


def _show(signature: Signature, index: int) -> str:
    return repr(signature.classes[index])
