"""Make up rows to try a model on: usual ones around its example, extreme ones, and rows near those already tried."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app.serving.features import Feature, Scalar, Value
from app.serving.name_tables import Names
from app.serving.signature import Signature

SEED = 20_231
"""The rows are the same at every load, and so is what is found by them."""

USUAL_SCALES = (1.0, 10.0, 0.1, 100.0, 1e3, 1e4)
"""How far usual numbers lie from the example's: nothing says how large a model's features are."""

USUAL_ROWS, EXTREME_ROWS = 36, 24

LARGE = (1e3, 1e6, 1e9)
"""Sizes of extreme numbers; integers end at the second, since a graph may count up to them."""


@dataclass(frozen=True, slots=True)
class Column:
    """A feature, its value in the example, and the texts or integers that an encoder knows of it."""

    feature: Feature
    example: Value
    known: Sequence[Value]


class RowMaker:
    """Makes rows for one model. Values are valid; a graph may still refuse some, such as unknown categories."""

    def __init__(self, signature: Signature, categories: Sequence[Names], example: Sequence[Value]) -> None:
        self._random = np.random.default_rng(SEED)
        known = _assign_categories(signature.features, categories)
        self._columns = [
            Column(feature, value, names)
            for feature, value, names in zip(signature.features, example, known, strict=True)
        ]

    def make_usual(self) -> list[list[Value]]:
        """Make rows around the example, from near it to far from it."""
        scales = [USUAL_SCALES[row % len(USUAL_SCALES)] for row in range(USUAL_ROWS)]
        return [[self._draw(column, scale) for column in self._columns] for scale in scales]

    def make_extreme(self) -> list[list[Value]]:
        """Make rows of large, small and mixed numbers of either sign."""
        rows = [[self._size(column, sign * size) for column in self._columns] for size in LARGE for sign in (1, -1)]
        rows += [[self._size(column, sign * 1e-6) for column in self._columns] for sign in (1, -1)]
        while len(rows) < EXTREME_ROWS:
            powers = self._random.uniform(-6, 9, len(self._columns))
            signs = self._random.choice((-1, 1), len(self._columns))
            rows.append(
                [
                    self._size(column, float(sign * 10**power))
                    for column, power, sign in zip(self._columns, powers, signs, strict=True)
                ]
            )
        return rows

    def make_near(self, row: Sequence[Value], others: Sequence[Sequence[Value]], count: int) -> list[list[Value]]:
        """Make rows that share most values with `row`; the rest come from other rows, or are moved a little."""
        return [self._vary(row, others[int(self._random.integers(len(others)))]) for _ in range(count)]

    def _vary(self, row: Sequence[Value], other: Sequence[Value]) -> list[Value]:
        share = self._random.choice((0.1, 0.3, 0.6))
        ways = self._random.choice(3, len(row), p=(1 - share, share / 2, share / 2))
        return [
            value if way == 0 else other_value if way == 1 else self._move(column, value)
            for column, value, other_value, way in zip(self._columns, row, other, ways, strict=True)
        ]

    def _move(self, column: Column, value: Value) -> Value:
        if column.feature.kind in ("text", "boolean") or value is None or isinstance(value, list):
            return self._draw(column, 1.0)
        step = self._random.normal() * (abs(float(value)) * 0.5 + 0.1)
        return _fit(column.feature, float(value) + step)

    def _draw(self, column: Column, scale: float) -> Value:
        if column.known:
            return column.known[int(self._random.integers(len(column.known)))]
        match column.feature.kind:
            case "text":
                return column.example
            case "boolean":
                return bool(self._random.integers(2))
        if column.feature.missing_allowed and self._random.random() < 0.1:
            return None
        if isinstance(column.example, list):
            return self._draw_tokens(column.example)
        return _fit(column.feature, float(column.example or 0) + scale * self._random.normal())

    def _draw_tokens(self, example: Sequence[Scalar]) -> list[Scalar]:
        """Draw tokens of the example, and 0, which the model must know; as many, so that rows can be one run."""
        known = [*example, 0]
        return [known[at] for at in self._random.integers(len(known), size=len(example)).tolist()]

    def _size(self, column: Column, value: float) -> Value:
        is_number = column.feature.kind in ("number", "integer") and not column.known
        return _fit(column.feature, value) if is_number else self._draw(column, 1.0)


def _fit(feature: Feature, value: float) -> Value:
    if feature.kind == "integer":
        return round(min(max(value, -LARGE[1]), LARGE[1]))
    return min(max(value, feature.type.low), feature.type.high)


def _assign_categories(features: Sequence[Feature], categories: Sequence[Names]) -> list[Sequence[Value]]:
    """Return what each feature's encoder knows, as far as the order of the encoders tells it."""
    known: list[Sequence[Value]] = [() for _ in features]
    for kind, type_ in (("text", str), ("integer", int)):
        lists = [names for names in categories if isinstance(names[0], type_)]
        places = [index for index, feature in enumerate(features) if feature.kind == kind]
        for index, names in zip(places, lists, strict=False):
            known[index] = names
    return known
