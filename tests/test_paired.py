"""The difference of two F1 on the same rows: its value and deviation, and how seldom a better threshold is chance."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from app.measures.measure import measure
from app.measures.paired import compare_f1
from app.settings import F1Average
from tests.support.cells import AVERAGES, count_cells

JOINT = np.array([[[300, 20], [35, 45]], [[40, 50], [25, 485]]])
"""Labelled rows by label, class served, class of the candidate."""


def score_cells(weights: NDArray[np.float64], average: F1Average) -> float:
    """scikit-learn's difference on one row for each cell, weighted by the cell's rows."""
    labels, served, candidate = (axis.ravel() for axis in np.indices(weights.shape))
    served_f1, candidate_f1 = (
        float(f1_score(labels, predicted, average=average, sample_weight=weights.ravel()))
        for predicted in (served, candidate)
    )
    return candidate_f1 - served_f1


def test_difference_and_deviation_are_the_published_ones() -> None:
    difference, deviation = compare_f1(JOINT, "binary", 1)

    assert difference == pytest.approx(0.0345238095238096, abs=1e-14)
    assert deviation == pytest.approx(0.009855442288764565, rel=1e-9)


@pytest.mark.parametrize("average", AVERAGES)
def test_deviation_follows_the_slope_of_scikit_learns_f1(average: F1Average) -> None:
    difference, deviation = compare_f1(JOINT, average, 1)

    rows, step = JOINT.astype(np.float64), 1e-3
    slopes = np.empty(rows.shape)
    for cell in np.ndindex(rows.shape):
        moved = np.zeros(rows.shape)
        moved[cell] = step
        slopes[cell] = (score_cells(rows + moved, average) - score_cells(rows - moved, average)) / (2 * step)
    discordant = np.indices(rows.shape)[1] != np.indices(rows.shape)[2]
    assert difference == pytest.approx(score_cells(rows, average), abs=1e-12)
    assert deviation == pytest.approx(float(np.sqrt(((rows + discordant / 2) * slopes**2).sum())), rel=1e-6)


def test_equal_decisions_have_no_difference() -> None:
    joint = np.array([[[10, 0], [0, 5]], [[3, 0], [0, 20]]])

    difference, deviation = compare_f1(joint, "binary", 1)

    assert difference == 0
    assert deviation > 0


def draw_scores(rng: np.random.Generator, rows: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Calibrated scores, uniform in (0, 1), and their labels: F1 = (1 - t^2) / (1.5 - t) is highest at t = 0.382."""
    scores = rng.uniform(size=rows)
    return scores, (rng.uniform(size=rows) < scores).astype(np.int64)


def test_gain_is_not_certain_when_the_best_threshold_is_served() -> None:
    rng, best = np.random.default_rng(12), (3 - np.sqrt(5)) / 2
    certain, regrets = 0, []
    for _ in range(200):
        scores, labels = draw_scores(rng, 300)
        measures = measure(count_cells(scores, (scores >= best).astype(int), labels), 2, 1, "binary", 50)
        certain += bool(measures.regret_is_certain)
        regrets.append(measures.regret)

    assert certain <= 4
    assert np.mean([regret is not None and regret > 0.005 for regret in regrets]) > 0.5  # chance alone gains as much


def test_gain_is_certain_when_the_served_threshold_is_far_away() -> None:
    scores, labels = draw_scores(np.random.default_rng(12), 2000)

    far, few = [
        measure(count_cells(scores[:rows], (scores[:rows] >= 0.8).astype(int), labels[:rows]), 2, 1, "binary", 50)
        for rows in (2000, 12)
    ]

    assert far.regret_is_certain is True
    assert few.regret_is_certain is False


def test_certainty_is_unknown_when_there_is_no_best_threshold() -> None:
    three = measure(count_cells([0.5] * 3, [0, 1, 2], [0, 1, 2]), 3, None, "macro", 1)
    one_class = measure(count_cells([0.5] * 3, [0, 1, 1], [1, 1, 1]), 2, 1, "binary", 1)

    assert three.regret_is_certain is one_class.regret_is_certain is None
