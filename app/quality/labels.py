"""Take labels: the newest observation counts, all are kept, and those without a stored prediction wait for it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import asyncpg
from msgspec.structs import replace

from app import metrics
from app.database.queries import Connection
from app.quality import key_label_queries, label_queries, waiting_queries
from app.quality.label_classes import Rejection
from app.quality.label_status_queries import add_rejections
from app.quality.label_targets import SLICE_LABELS, Found, Label, Target, cut, find_targets
from app.quality.ledger_queries import read_dropped_before

Outcome = Literal["new", "unchanged", "corrected", "withdrawn", "pending", "expired", "rejected"]

PENDING_DAYS = 30
"""How long a label waits for its prediction, which is stored within seconds, or within hours after an outage."""

STRENGTH: Sequence[Outcome] = ("unchanged", "withdrawn", "new", "corrected")
"""When a label has several predictions with different outcomes, the last of them in this list is counted."""


@dataclass(slots=True)
class Applied:
    """The outcome of each label, by position, and the seconds from each newly labelled prediction to its label."""

    outcomes: dict[int, Outcome]
    delays: list[float]
    found: Found

    def find_pending(self) -> list[int]:
        """Return the positions of labels whose prediction is not stored yet."""
        return [position for position, outcome in self.outcomes.items() if outcome == "pending"]


@dataclass(frozen=True, slots=True)
class Taken:
    """The labels of a request by outcome, the predictions that they were for, and why labels were rejected."""

    counts: Counter[Outcome]
    predictions: int
    rejected: dict[int, Rejection]


async def take_labels(connection: Connection, labels: Sequence[Label]) -> Taken:
    """Apply `labels` in one transaction; keep those without a stored prediction, and all that are under a key.

    A label for an unknown prediction is `expired` when the time in its id is more than PENDING_DAYS ago, or when
    retention has dropped the rows of that time.
    """
    labels = _date_repeated(labels)
    async with connection.transaction():
        found = await find_targets(connection, labels)
        applied = await apply_labels(connection, labels, found)
        outcomes = applied.outcomes
        if pending := applied.find_pending():
            dropped_before = await read_dropped_before(connection)
        for position in pending:
            label = labels[position]
            oldest = max(label.received_at - timedelta(days=PENDING_DAYS), dropped_before)
            if is_older(label.prediction_id, oldest):
                outcomes[position] = "expired"
        await _keep_waiting(connection, labels, applied)
        rejected = {at: found.rejected[at] for at, outcome in outcomes.items() if outcome == "rejected"}
        await add_rejections(connection, rejected.values())
    predictions = len({target.prediction_id for target in found.targets})
    return Taken(publish_outcomes(outcomes.values(), applied.delays), predictions, rejected)


def _date_repeated(labels: Sequence[Label]) -> list[Label]:
    """Date each further label under one key a microsecond later.

    They are applied to later predictions one by one, in any order, and of equal times the later arrival counts.
    """
    seen = Counter[str | None]()
    dated = []
    for label in labels:
        dated.append(_postpone(label, timedelta(microseconds=seen[label.external_id])))
        if label.external_id is not None:
            seen[label.external_id] += 1
    return dated


def _postpone(label: Label, by: timedelta) -> Label:
    """Return a label as if it had been received later; its time of observation follows if it is the same."""
    if not by:
        return label
    is_dated_here = label.observed_at == label.received_at
    observed_at = label.observed_at + by if is_dated_here else label.observed_at
    return replace(label, observed_at=observed_at, received_at=label.received_at + by)


async def apply_labels(connection: Connection, labels: Sequence[Label], found: Found) -> Applied:
    """Write the labels of the predictions that were found; the outcome of labels without one is `pending`."""
    applied = Applied(dict.fromkeys(range(len(labels)), "pending"), [], found)
    for position in found.rejected:
        applied.outcomes[position] = "rejected"
    for batch in _split_repeated(found.targets):
        for some in cut(batch, SLICE_LABELS):
            _note(applied, labels, some, await _write(connection, labels, some))
    return applied


def _split_repeated(targets: Sequence[Target]) -> list[list[Target]]:
    """Split into batches with ascending and unique predictions, because a statement cannot change a row twice.

    The first batch has every prediction, so that it locks all the rows: all writers lock rows in the same order.
    """
    batches: list[list[Target]] = []
    previous, repetition = None, 0
    for target in sorted(targets, key=lambda target: (target.prediction_id.int, target.position)):
        repetition = repetition + 1 if target.prediction_id == previous else 0
        previous = target.prediction_id
        if repetition == len(batches):
            batches.append([])
        batches[repetition].append(target)
    return batches


async def _write(connection: Connection, labels: Sequence[Label], targets: Sequence[Target]) -> list[Outcome]:
    """Write the current labels and the history of unique, ascending predictions; return the outcome of each."""
    ids = [target.prediction_id for target in targets]
    events = [labels[target.position] for target in targets]
    classes = [target.label for target in targets]
    observed_at, received_at = [event.observed_at for event in events], [event.received_at for event in events]
    rows = await label_queries.upsert_labels(connection, ids, classes, observed_at, received_at)
    written = {row["prediction_id"]: row for row in rows}
    outcomes = [_name_outcome(written.get(prediction_id)) for prediction_id in ids]
    await label_queries.append_history(connection, ids, classes, observed_at, received_at, outcomes)
    return outcomes


def _name_outcome(row: asyncpg.Record | None) -> Outcome:
    """Return the outcome from the row that an upsert wrote; None: the stored label is the same or newer."""
    if row is None:
        return "unchanged"
    label, previous, first = row["label"], row["previous_label"], row["revision"] == 1
    if label == previous and not first:
        return "unchanged"
    if label is None:
        return "withdrawn"
    return "new" if previous is None else "corrected"


def _note(applied: Applied, labels: Sequence[Label], targets: Sequence[Target], outcomes: Sequence[Outcome]) -> None:
    """Add the outcomes of labels and their delays; a label with several predictions has one outcome (STRENGTH)."""
    for target, outcome in zip(targets, outcomes, strict=True):
        applied.outcomes[target.position] = choose_stronger(applied.outcomes[target.position], outcome)
        if outcome == "new":
            delay = labels[target.position].received_at - target.created_at
            applied.delays.append(max(0.0, delay.total_seconds()))


def choose_stronger(before: Outcome | None, outcome: Outcome) -> Outcome:
    """Return which of two outcomes of one label is counted (STRENGTH)."""
    if before is None or before not in STRENGTH:
        return outcome
    return outcome if outcome in STRENGTH and STRENGTH.index(outcome) > STRENGTH.index(before) else before


async def _keep_waiting(connection: Connection, labels: Sequence[Label], applied: Applied) -> None:
    """Keep the labels that wait for an id, and every label under a key: it counts for later predictions too."""
    pending, found = set(applied.find_pending()), applied.found
    waiting = [labels[at] for at in sorted(pending) if labels[at].prediction_id is not None]
    under_keys = [(at, label) for at, label in enumerate(labels) if label.external_id is not None]
    if waiting:
        await waiting_queries.add_pending(
            connection, [label.prediction_id for label in waiting], *_list_columns(waiting)
        )
    if under_keys:
        await key_label_queries.add_key_labels(
            connection,
            [label.external_id for _, label in under_keys],
            *_list_columns([label for _, label in under_keys]),
            [at in pending for at, _ in under_keys],
            [found.looked_to.get(at) for at, _ in under_keys],
        )
    await keep_arrivals(connection, labels, found)


async def keep_arrivals(connection: Connection, labels: Sequence[Label], found: Found) -> None:
    """Let the sweep label the predictions under a key whose version is not registered yet."""
    late = [(prediction_id, labels[at].external_id) for at, prediction_id in found.unregistered]
    keyed = [(prediction_id, key) for prediction_id, key in dict.fromkeys(late) if key is not None]
    if keyed:
        await waiting_queries.add_arrivals(connection, *map(list, zip(*keyed, strict=True)))


def _list_columns(
    labels: Sequence[Label],
) -> tuple[list[str | None], list[datetime], list[datetime]]:
    return (
        [label.label for label in labels],
        [label.observed_at for label in labels],
        [label.received_at for label in labels],
    )


def is_older(prediction_id: UUID | None, instant: datetime) -> bool:
    """Return whether this is a UUIDv7 made before `instant`; other UUIDs have no time in them."""
    if prediction_id is None or prediction_id.version != 7:
        return False
    return prediction_id.int >> 80 < instant.timestamp() * 1000


def publish_outcomes(outcomes: Iterable[Outcome], delays: Sequence[float]) -> Counter[Outcome]:
    """Add outcomes and delays to the metrics, after COMMIT; return the counts."""
    counts = Counter(outcomes)
    metrics.LABEL_DELAY.observe((), delays)
    for outcome, count in counts.items():
        metrics.LABELS.labels(outcome).inc(count)
    return counts
