"""Bias-corrected F1: right where labels come for some predictions rather than others, and its edges."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from app.measures.measure import Measures, measure
from tests.support.cells import count_cells

ROWS = 20_000


def simulate(chance: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Scores, decisions at 0.5 and labels of a fairly calibrated model."""
    scores = chance.beta(0.4, 0.6, ROWS)
    return scores, (scores >= 0.5).astype(int), (chance.random(ROWS) < scores).astype(int)


def keep(chance: np.random.Generator, labels: NDArray[np.int64], probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """Labels that arrive with these probabilities, -1 for the others."""
    return np.where(chance.random(len(labels)) < probability, labels, -1)


@pytest.mark.parametrize("rarest", [0.002, 0.02, 0.1])
def test_labels_that_come_more_often_for_predicted_positives_are_corrected_for(rarest: float) -> None:
    errors = []
    for seed in range(30):
        chance = np.random.default_rng(seed)
        scores, predicted, labels = simulate(chance)
        arrived = keep(chance, labels, np.where(predicted == 1, 0.5, rarest))
        measures = measure(count_cells(scores, predicted, arrived), 2, 1, "binary", 50)
        assert measures.f1 is not None
        assert measures.corrected_f1 is not None
        true = f1_score(labels, predicted)
        errors.append((measures.f1 - true, measures.corrected_f1 - true))

    naive, corrected = np.array(errors).T

    assert naive.mean() > 0.05
    assert abs(corrected.mean()) < 3 * corrected.std() / np.sqrt(30) + 0.001
    assert np.abs(corrected).max() < np.abs(naive).max()


def test_labels_that_come_more_often_near_the_threshold_are_corrected_for() -> None:
    chance = np.random.default_rng(0)
    scores, predicted, labels = simulate(chance)
    arrived = keep(chance, labels, 0.02 / (np.abs(scores - 0.5) + 0.02))

    measures = measure(count_cells(scores, predicted, arrived), 2, 1, "binary", 50)

    true = f1_score(labels, predicted)
    assert measures.f1 == pytest.approx(true - 0.18, abs=0.05)
    assert measures.corrected_f1 == pytest.approx(true, abs=0.015)


def test_correction_of_several_classes_is_by_the_predicted_one() -> None:
    chance = np.random.default_rng(0)
    predicted = chance.choice(3, ROWS, p=[0.7, 0.2, 0.1])
    scores = chance.uniform(0.34, 1, ROWS)
    labels = np.where(chance.random(ROWS) < scores, predicted, chance.integers(0, 3, ROWS))
    arrived = keep(chance, labels, np.array([0.02, 0.2, 0.9])[predicted] * scores)

    measures = measure(count_cells(scores, predicted, arrived), 3, None, "macro", 50)

    true = f1_score(labels, predicted, average="macro")
    assert measures.f1 is not None
    assert abs(measures.f1 - true) > 0.03
    assert measures.corrected_f1 == pytest.approx(true, abs=0.015)


def test_correction_changes_nothing_when_every_row_is_labelled() -> None:
    scores, predicted, labels = simulate(np.random.default_rng(0))

    measures = measure(count_cells(scores, predicted, labels), 2, 1, "binary", 50)

    assert measures.corrected_f1 == pytest.approx(measures.f1, abs=1e-12)


def measure_strata(*strata: tuple[float, int, int, int, int]) -> Measures:
    """Strata: score, predicted class, rows labelled positive, labelled negative, without label."""
    rows = [
        (score, predicted, label)
        for score, predicted, *counts in strata
        for label, count in zip((1, 0, -1), counts, strict=True)
        for _ in range(count)
    ]
    return measure(count_cells(*zip(*rows, strict=True)), 2, 1, "binary", 50)


def test_each_label_stands_for_the_predictions_of_its_stratum() -> None:
    measures = measure_strata((0.95, 1, 3, 1, 4), (0.65, 1, 1, 1, 8), (0.05, 0, 1, 9, 90))

    hits, false_positives, misses = 8 * 3 / 4 + 10 / 2, 8 / 4 + 10 / 2, 100 / 10
    assert measures.corrected_f1 == pytest.approx(2 * hits / (2 * hits + false_positives + misses), abs=1e-12)


def test_a_stratum_without_labels_is_taken_from_its_neighbours_by_nearness() -> None:
    measures = measure_strata((0.605, 1, 1, 3, 0), (0.705, 1, 0, 0, 60), (0.905, 1, 4, 0, 0), (0.055, 0, 0, 5, 5))

    share = 1 / 4 + (1 - 1 / 4) * (0.705 - 0.605) / (0.905 - 0.605)
    hits = 1 + 60 * share + 4
    assert measures.corrected_f1 == pytest.approx(2 * hits / (hits + 4 + 60 + 4), abs=1e-12)


def test_a_stratum_beyond_the_last_label_is_like_the_last() -> None:
    measures = measure_strata((0.605, 1, 1, 3, 0), (0.995, 1, 0, 0, 60), (0.055, 0, 0, 5, 5))

    assert measures.corrected_f1 == pytest.approx(2 * (1 + 15) / (16 + 4 + 60), abs=1e-12)


def test_there_is_no_correction_when_a_predicted_class_has_no_label_at_all() -> None:
    measures = measure_strata((0.95, 1, 40, 20, 4), (0.05, 0, 0, 0, 90))

    assert measures.f1 == pytest.approx(0.8)
    assert measures.corrected_f1 is None
