"""Find the predictions that labels are for, by id and under the client's key, and the class that each label means."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import asyncpg
import msgspec

from app.database.queries import Connection
from app.quality import key_label_queries, label_queries
from app.quality.label_classes import Rejection, read_class_names

T = TypeVar("T")

SLICE_LABELS = 500
"""Labels in one statement: preparing it and reading its result blocks the event loop for about a millisecond."""

FIRST_PREDICTIONS = 10
"""Predictions of one key that are found together with those of other keys; most keys have one."""

KEY_PREDICTIONS = 1_000
"""Most predictions of one key that are labelled at a time; the sweep labels the others."""

MOST_PREDICTIONS = 10_000
"""While fewer predictions were found at a time, keys with more than FIRST_PREDICTIONS are followed further."""

BEFORE_ALL = UUID(int=0)
"""Less than the id of any prediction."""


class Label(msgspec.Struct, frozen=True, gc=False):
    """One received label. One of the two keys is set; `label` is the class as it was sent, None a withdrawal."""

    prediction_id: UUID | None
    external_id: str | None
    label: str | None
    observed_at: datetime
    received_at: datetime


class Target(msgspec.Struct, frozen=True, gc=False):
    """A stored prediction, the position of a label for it, and the class that the label means."""

    position: int
    prediction_id: UUID
    created_at: datetime
    label: str | None


@dataclass(slots=True)
class Found:
    """The predictions of labels, why labels are rejected (by position), and predictions of unregistered versions.

    `looked_to` has the positions of labels whose key has more predictions, each with the last one that was found.
    """

    targets: list[Target] = field(default_factory=list)
    rejected: dict[int, Rejection] = field(default_factory=dict)
    unregistered: list[tuple[int, UUID]] = field(default_factory=list)
    looked_to: dict[int, UUID] = field(default_factory=dict)

    def add(self, labels: Sequence[Label], rows: Sequence[asyncpg.Record]) -> None:
        """Add predictions as `label_queries.find_by_id` returns them."""
        for position, prediction_id, created_at, model_name, model_version, classes in rows:
            if classes is None:  # the version is served, but not registered yet
                self.unregistered.append((position, prediction_id))
                continue
            label = labels[position].label
            if label is not None:
                fitting = read_class_names(classes).find(label)
                if len(fitting) != 1:
                    rejection = Rejection(bool(fitting), model_name, model_version, classes)
                    self.rejected.setdefault(position, rejection)
                    continue
                [label] = fitting
            self.targets.append(Target(position, prediction_id, created_at, label))


async def find_targets(connection: Connection, labels: Sequence[Label]) -> Found:
    """Find the predictions of labels, by their id and under their key."""
    found = Found()
    await _find_by_ids(connection, labels, found)
    keys = [(at, label.external_id, BEFORE_ALL) for at, label in enumerate(labels) if label.external_id is not None]
    await follow_keys(connection, labels, keys, found)
    return found


async def _find_by_ids(connection: Connection, labels: Sequence[Label], found: Found) -> None:
    """Add the predictions of the labels that have an id."""
    ids = [(label.prediction_id, at) for at, label in enumerate(labels) if label.prediction_id is not None]
    ids.sort(key=lambda pair: pair[0].int)
    for some in cut(ids, SLICE_LABELS):
        found.add(labels, await label_queries.find_by_id(connection, [at for _, at in some], [key for key, _ in some]))


async def follow_keys(
    connection: Connection, labels: Sequence[Label], keys: Sequence[tuple[int, str, UUID]], found: Found
) -> None:
    """Add live predictions under (position, key, after which id); `looked_to` says where there may be more."""
    rows_found = 0
    for some in cut(keys, SLICE_LABELS):
        rows = await key_label_queries.find_under_keys(
            connection,
            [at for at, _, _ in some],
            [key for _, key, _ in some],
            [looked_to for _, _, looked_to in some],
            FIRST_PREDICTIONS,
        )
        found.add(labels, rows)
        rows_found += len(rows)
        found.looked_to |= _find_full(rows, FIRST_PREDICTIONS)
    key_at = {position: key for position, key, _ in keys}
    for position, last in list(found.looked_to.items()):
        if rows_found >= MOST_PREDICTIONS:
            break
        limit = KEY_PREDICTIONS - FIRST_PREDICTIONS
        rows = await key_label_queries.find_under_keys(connection, [position], [key_at[position]], [last], limit)
        found.add(labels, rows)
        rows_found += len(rows)
        found.looked_to |= _find_full(rows, limit)
        if len(rows) < limit:
            del found.looked_to[position]


def _find_full(rows: Sequence[asyncpg.Record], limit: int) -> dict[int, UUID]:
    """Return the positions that have `limit` predictions, each with its last one."""
    ids = defaultdict[int, list[UUID]](list)
    for row in rows:
        ids[row["position"]].append(row["prediction_id"])
    return {position: max(found) for position, found in ids.items() if len(found) == limit}


def cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield parts of at most `size` items."""
    return (items[start : start + size] for start in range(0, len(items), size))
