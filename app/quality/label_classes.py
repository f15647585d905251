"""Which class of a version a label means: the class itself, or the only class that its spelling fits."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

import msgspec

NUMBER = re.compile(r"[+-]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][+-]?[0-9]{1,3})?")
"""A number as programs write it; pandas writes a class 1 as `1.0` in a column with gaps."""

BOOLEANS = {"false": Decimal(0), "true": Decimal(1)}


class Rejection(msgspec.Struct, frozen=True):
    """A label that fits several classes of this version (`is_ambiguous`), or none. `classes` is JSON."""

    is_ambiguous: bool
    model_name: str
    model_version: str
    classes: str


@dataclass(frozen=True, slots=True)
class ClassNames:
    """The classes of a version as text, and those that fit each way to read a text."""

    names: frozenset[str]
    by_reading: Mapping[object, frozenset[str]]

    def find(self, label: str) -> frozenset[str]:
        """Return the classes that a label may mean: only itself when there is a class of this name."""
        if label in self.names:
            return frozenset((label,))
        return frozenset[str]().union(*(self.by_reading.get(reading, ()) for reading in _read(label)))


@lru_cache(maxsize=64)
def decode_classes(classes: str) -> tuple[int | str, ...]:
    """Return the classes of a version from their JSON, in its order."""
    return msgspec.json.decode(classes, type=tuple[int | str, ...])


@lru_cache(maxsize=64)
def read_class_names(classes: str) -> ClassNames:
    """Return the classes of a version as text, from their JSON."""
    names = frozenset(map(str, decode_classes(classes)))
    by_reading: defaultdict[object, set[str]] = defaultdict(set)
    for name in names:
        for reading in _read(name):
            by_reading[reading].add(name)
    if {BOOLEANS.get(name.casefold(), _read_number(name)) for name in names} == {0, 1}:
        for text, number in BOOLEANS.items():  # for classes 1 and 2, nobody knows which of them is true
            by_reading[text] |= by_reading[number]
            by_reading[number] |= by_reading[text]
    return ClassNames(names, {reading: frozenset(fitting) for reading, fitting in by_reading.items()})


def _read(text: str) -> list[object]:
    """Return the ways to read a text: without regard to case, and as a number."""
    number = _read_number(text)
    return [text.casefold()] if number is None else [text.casefold(), number]


def _read_number(text: str) -> Decimal | None:
    return Decimal(text) if NUMBER.fullmatch(text) else None
