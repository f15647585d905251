"""F1 against scikit-learn on the same rows."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from app.measures.f1 import Confusion, choose_average, compute_f1, confusion_matrix
from app.settings import F1Average
from tests.support.cells import AVERAGES

Cells = dict[tuple[str, str], int]
"""Rows by (label, predicted class)."""

CLASS_NAMES = [("0", "1"), ("-1", "1"), ("no", "yes"), ("10", "9", "0"), ("a", "B", "ä", "1", "01")]

COUNTS = st.integers(0, 50) | st.integers(0, 10**12)


def cells_of(names: tuple[str, ...]) -> st.SearchStrategy[Cells]:
    """Draw a confusion matrix over any subset of classes, some of them labelled only or predicted only."""
    return st.dictionaries(st.tuples(st.sampled_from(names), st.sampled_from(names)), COUNTS, min_size=1)


def nest(cells: Cells) -> Confusion:
    nested: dict[str, dict[str, int]] = {}
    for (label, predicted), rows in cells.items():
        nested.setdefault(label, {})[predicted] = rows
    return nested


def score(cells: Cells, average: F1Average, positive_class: str | int = 1) -> float:
    """scikit-learn's F1 of these rows, each kind of row once with its number as the weight; 1 is its default."""
    kinds = [(label, predicted, rows) for (label, predicted), rows in cells.items() if rows]
    labels, predictions, weights = zip(*kinds, strict=True)
    return float(f1_score(labels, predictions, average=average, pos_label=positive_class, sample_weight=weights))


@given(
    cells=st.sampled_from(CLASS_NAMES).flatmap(cells_of).filter(lambda cells: any(cells.values())),
    average=st.sampled_from(["macro", "micro", "weighted"]),
)
def test_f1_equals_scikit_learn_over_classes(cells: Cells, average: F1Average) -> None:
    f1 = compute_f1(nest(cells), average, None)

    assert f1 == pytest.approx(score(cells, average), abs=1e-12)


@given(
    names=st.sampled_from([names for names in CLASS_NAMES if len(names) == 2]),
    counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS).filter(lambda counts: any(counts[1:])),
)
def test_f1_equals_scikit_learn_for_the_positive_class(
    names: tuple[str, str], counts: tuple[int, int, int, int]
) -> None:
    negative, positive = names
    pairs = [(negative, negative), (negative, positive), (positive, negative), (positive, positive)]
    cells = dict(zip(pairs, counts, strict=True))

    f1 = compute_f1(nest(cells), "binary", positive)

    assert f1 == pytest.approx(score(cells, "binary", positive), abs=1e-12)


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1))
def test_f1_of_integer_classes_as_text_equals_scikit_learn_on_integers(rows: list[tuple[int, int]]) -> None:
    labels, predictions = zip(*rows, strict=True)
    cells = dict(Counter((str(label), str(predicted)) for label, predicted in rows))

    f1 = compute_f1(nest(cells), "macro", None)

    assert f1 == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
def test_f1_is_one_when_every_row_is_the_positive_class(average: F1Average) -> None:
    assert compute_f1({"1": {"1": 7}}, average, "1") == 1


def test_f1_is_zero_when_no_positive_row_is_found() -> None:
    assert compute_f1({"1": {"0": 3}, "0": {"0": 90}}, "binary", "1") == 0


def test_f1_is_zero_when_every_positive_prediction_is_wrong() -> None:
    assert compute_f1({"0": {"1": 3, "0": 90}}, "binary", "1") == 0


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("confusion", [{}, {"0": {}}, {"0": {"0": 0}, "1": {"0": 0, "1": 0}}])
def test_f1_is_undefined_without_rows(average: F1Average, confusion: Confusion) -> None:
    assert compute_f1(confusion, average, "1") is None


@pytest.mark.parametrize("confusion", [{"0": {"0": 5}}, {"0": {"0": 5, "1": 0}, "1": {"0": 0, "1": 0}}])
def test_f1_is_undefined_when_no_row_is_positive(confusion: Confusion) -> None:
    assert compute_f1(confusion, "binary", "1") is None


def test_confusion_matrix_has_labels_as_rows() -> None:
    matrix = confusion_matrix({"a": {"b": 2}, "b": {"b": 3}}, ["a", "b", "c"])

    assert matrix.tolist() == [[0, 2, 0], [0, 3, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("asked", "classes", "chosen"),
    [
        (None, 2, "binary"),
        (None, 3, "macro"),
        ("binary", 2, "binary"),
        ("binary", 3, "macro"),
        ("macro", 2, "macro"),
        ("micro", 2, "micro"),
        ("weighted", 3, "weighted"),
    ],
)
def test_average_is_what_was_asked_where_it_can_be(asked: F1Average | None, classes: int, chosen: F1Average) -> None:
    assert choose_average(asked, classes) == chosen
