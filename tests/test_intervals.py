"""The bounds of F1: against scipy, by what they cover in simulated windows, and at their edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from app.measures.f1 import Array, average_f1, count_classes
from app.measures.intervals import Z, bound_f1, sum_variance, weighted_variance, wilson
from app.settings import F1Average
from tests.support.cells import AVERAGES

DRAWS = 4000
"""Coverage is then known to 0.35 points (one standard error)."""

TOLERANCE = 1.0
"""Three standard errors."""

SHARES = ((1, 1), (9, 1), (19, 1), (1, 1, 1), (6, 3, 1), (30, 2, 1), (1, 1, 1, 1, 1), (13, 6, 3, 2, 1))
RECALLS = (0.4, 0.7, 0.9, 0.97, 0.995)


def make_world(shares: Sequence[float], recalls: float | Sequence[float], *, to_frequent: bool) -> Array:
    """Chances (classes, classes) of label and prediction; errors go to the other classes alike, or by their shares."""
    share = np.array(shares, float) / sum(shares)
    recall = np.broadcast_to(recalls, share.shape)
    errors = np.tile(share if to_frequent else np.ones(len(share)), (len(share), 1))
    np.fill_diagonal(errors, 0)
    errors *= ((1 - recall) / errors.sum(axis=1))[:, None]
    return share[:, None] * (errors + np.diag(recall))


def make_worlds() -> list[Array]:
    worlds = [
        make_world(shares, recall, to_frequent=to_frequent)
        for shares in SHARES
        for recall in RECALLS
        for to_frequent in (False, True)
    ]
    worlds += [make_world((19, 1), recalls, to_frequent=False) for recalls in ((0.99, 0.5), (0.99, 0.9), (0.97, 0.7))]
    worlds.append(make_world((6, 3, 1), (0.98, 0.8, 0.4), to_frequent=True))
    worlds.append(make_world((30, 2, 1), (0.99, 0.7, 0.4), to_frequent=True))
    worlds.append(make_world((13, 6, 3, 2, 1), (0.98, 0.9, 0.8, 0.5, 0.2), to_frequent=True))
    return worlds


def draw(chance: np.random.Generator, world: Array, labels: int) -> NDArray[np.int64]:
    return chance.multinomial(labels, world.ravel(), size=DRAWS).reshape(DRAWS, *world.shape)


def true_f1(world: Array, matrices: NDArray[np.int64], average: F1Average) -> Array:
    """F1 of all that could be drawn; `macro` over the classes that were."""
    if average != "macro":
        return average_f1(world, average, 1)
    hits, labelled, predicted = count_classes(world)
    occurring = matrices.sum(axis=1) + matrices.sum(axis=2) > 0
    mean: Array = (occurring * 2 * hits / (labelled + predicted)).sum(axis=1) / occurring.sum(axis=1)
    return mean


def count_errors(world: Array, average: F1Average) -> float:
    """The share of rows that lower F1."""
    hits, labelled, predicted = count_classes(world)
    return float(labelled[1] + predicted[1] - 2 * hits[1] if average == "binary" else 1 - hits.sum())


def cover(bounds: tuple[Array, Array], truth: Array) -> float:
    """The share of the bounds, in percent, that have the truth between them, where there are bounds."""
    lower, upper = bounds
    exist = ~np.isnan(lower)
    return float(100 * ((lower <= truth + 1e-12) & (truth - 1e-12 <= upper))[exist].mean())


COVERED = {
    ("binary", 50): ((94.7, 96.7), (91.3, 97.3)),
    ("binary", 200): ((94.4, 95.6), (94.5, 95.8)),
    ("binary", 1000): ((94.6, 96.1), None),
    ("macro", 50): ((91.3, 98.4), (93.3, 98.2)),
    ("macro", 200): ((94.2, 97.5), (95.7, 98.2)),
    ("macro", 1000): ((94.8, 96.7), None),
    ("micro", 50): ((93.8, 97.3), (93.4, 97.9)),
    ("micro", 200): ((94.0, 95.8), (91.7, 97.2)),
    ("micro", 1000): ((93.6, 96.5), None),
    ("weighted", 50): ((94.4, 97.3), (95.8, 98.5)),
    ("weighted", 200): ((94.1, 95.8), (97.1, 98.3)),
    ("weighted", 1000): ((94.6, 96.5), None),
}
"""Percent covered in the worst and best world of 20,000 draws: three errors or more are expected, and fewer are."""


@pytest.mark.parametrize(("average", "labels"), COVERED)
def test_bounds_cover_what_their_docstring_says(average: F1Average, labels: int) -> None:
    chance = np.random.default_rng(labels)
    covered: dict[bool, list[float]] = {True: [], False: []}
    for world in make_worlds():
        if average != "binary" or len(world) == 2:
            matrices = draw(chance, world, labels)
            share = cover(bound_f1(matrices, average, 1), true_f1(world, matrices, average))
            covered[labels * count_errors(world, average) > 2.99].append(share)

    enough, few = COVERED[average, labels]

    assert [min(covered[True]), max(covered[True])] == pytest.approx(enough, abs=TOLERANCE)
    assert (few is None) == (not covered[False])
    if few is not None:
        assert [min(covered[False]), max(covered[False])] == pytest.approx(few, abs=TOLERANCE)


def test_wilson_on_the_jaccard_index_does_not_cover_micro_f1() -> None:
    world = make_world((1, 1, 1), 0.8, to_frequent=False)
    matrices = draw(np.random.default_rng(1), world, 200)
    hits = np.diagonal(matrices, axis1=1, axis2=2).sum(axis=1)
    involved = 2 * 200 - hits

    lower, upper = wilson(hits / involved, involved.astype(float))

    assert cover((2 * lower / (1 + lower), 2 * upper / (1 + upper)), average_f1(world, "micro", None)) < 91
    assert cover(bound_f1(matrices, "micro", None), average_f1(world, "micro", None)) > 93.5


def delta_variance(matrices: NDArray[np.int64], average: F1Average) -> Array:
    if average == "weighted":
        return weighted_variance(matrices)
    return sum_variance(matrices, np.array([0.0, 1] if average == "binary" else [0.5, 0.5]))


@pytest.mark.parametrize("average", ["binary", "macro", "weighted"])
def test_the_delta_method_alone_does_not_cover_f1_with_50_labels(average: F1Average) -> None:
    world = make_world((1, 1), 0.97, to_frequent=False)
    matrices = draw(np.random.default_rng(2), world, 50)
    f1, truth = average_f1(matrices, average, 1), average_f1(world, average, 1)
    reach = Z * np.sqrt(delta_variance(matrices, average))

    assert cover((f1 - reach, f1 + reach), truth) < 85
    assert cover(bound_f1(matrices, average, 1), truth) > 93


@given(counts=st.tuples(*[st.integers(0, 10**9)] * 3).filter(any))
def test_binary_bounds_are_scipys_wilson_bounds_of_the_jaccard_index(counts: tuple[int, int, int]) -> None:
    hits, false_positives, misses = counts
    jaccard = binomtest(hits, sum(counts)).proportion_ci(method="wilson")

    bounds = bound_f1(np.array([[7, false_positives], [misses, hits]]), "binary", 1)

    expected = [2 * bound / (1 + bound) for bound in (jaccard.low, jaccard.high)]
    assert [float(bound) for bound in bounds] == pytest.approx(expected, abs=1e-12)


def test_micro_bounds_are_scipys_wilson_bounds_of_the_accuracy() -> None:
    accuracy = binomtest(43, 50).proportion_ci(method="wilson")

    bounds = bound_f1(np.array([[20, 3, 1], [0, 13, 2], [1, 0, 10]]), "micro", None)

    assert [float(bound) for bound in bounds] == pytest.approx([accuracy.low, accuracy.high], abs=1e-12)


def differentiate(matrix: Array, number: Any) -> Array:
    """The derivatives (..., classes²) of `number(matrix)` by each count, by central differences."""
    steps = 1e-4 * np.eye(matrix.size).reshape(-1, *matrix.shape)
    return np.stack([(number(matrix + step) - number(matrix - step)) / 2e-4 for step in steps], axis=-1)


def multinomial_covariance(matrix: Array) -> Array:
    covariance: Array = np.diag(matrix.ravel()) - np.outer(matrix, matrix) / matrix.sum()
    return covariance


MATRIX = np.array([[40.0, 3, 2], [5, 20, 4], [1, 6, 9]])


@pytest.mark.parametrize("weights", [(1, 0, 0), (1 / 3, 1 / 3, 1 / 3), (0.5, 0, 2), (1, -1, 0)], ids=str)
def test_variance_of_a_sum_of_classes_is_the_delta_methods(weights: tuple[float, ...]) -> None:
    def score(matrix: Array) -> Array:
        hits, labelled, predicted = count_classes(matrix)
        return 2 * hits / (labelled + predicted)

    gradient = np.array(weights) @ differentiate(MATRIX, score)

    expected = gradient @ multinomial_covariance(MATRIX) @ gradient
    assert float(sum_variance(MATRIX, np.array(weights))) == pytest.approx(expected, rel=1e-5)


def test_weighted_variance_is_the_delta_methods() -> None:
    gradient = differentiate(MATRIX, lambda matrix: average_f1(matrix, "weighted", None))

    expected = gradient @ multinomial_covariance(MATRIX) @ gradient
    assert float(weighted_variance(MATRIX)) == pytest.approx(expected, rel=1e-5)


@given(
    matrix=st.integers(2, 4).flatmap(
        lambda classes: st.lists(
            st.lists(st.sampled_from([0, 0, 1, 2, 30, 10**12]), min_size=classes, max_size=classes),
            min_size=classes,
            max_size=classes,
        )
    ),
    average=st.sampled_from(AVERAGES),
)
def test_bounds_are_around_f1_and_between_0_and_1(matrix: list[list[int]], average: F1Average) -> None:
    counts = np.array(matrix)
    f1 = average_f1(counts, average, 1)

    lower, upper = bound_f1(counts, average, 1)

    if np.isnan(f1):
        assert np.isnan(lower)
        assert np.isnan(upper)
    else:
        assert 0 <= lower <= f1 <= upper <= 1


@pytest.mark.parametrize("average", ["macro", "weighted"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_no_error_among_few_labels_still_leaves_room_below(average: F1Average, classes: int) -> None:
    few, many = (bound_f1(rows * np.eye(classes, dtype=int), average, None) for rows in (10, 1000))

    assert few[1] == many[1] == 1
    assert 0.6 < few[0] < 0.95 < many[0] < 1
