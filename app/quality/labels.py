"""Take labels: the newest observation counts, all are kept, and those without a stored prediction wait for it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from app import metrics
from app.database.queries import Connection
from app.quality import label_queries
from app.quality.ledger_queries import read_dropped_before
from app.quality.queries import read_clock

T = TypeVar("T")

Outcome = Literal["new", "unchanged", "corrected", "withdrawn", "pending", "expired", "rejected"]

PENDING_DAYS = 30
"""How long a label waits for its prediction, which is stored within seconds, or within hours after an outage."""

SWEEP_ROWS = 5_000
"""Most pending labels in one run of the job; the others wait for the next run."""

LONGEST_PAUSE = timedelta(hours=1)
"""The longest pause between two tries to apply a pending label."""

SLICE_LABELS = 500
"""Labels in one statement: preparing it and reading its result blocks the event loop for about a millisecond."""

STRENGTH: Sequence[Outcome] = ("unchanged", "withdrawn", "new", "corrected")
"""When a label has several predictions with different outcomes, the last of them in this list is counted."""


class Label(msgspec.Struct, frozen=True, gc=False):
    """One received label. Exactly one of the two keys is set; `label` is the class as text, None a withdrawal."""

    prediction_id: UUID | None
    external_id: str | None
    label: str | None
    observed_at: datetime
    received_at: datetime


class Applied(msgspec.Struct):
    """The outcome of each label, by position, and the seconds from each newly labelled prediction to its label."""

    outcomes: dict[int, Outcome]
    delays: list[float]

    def find_pending(self) -> list[int]:
        """Return the positions of labels whose prediction is not stored yet."""
        return [position for position, outcome in self.outcomes.items() if outcome == "pending"]


class _Target(msgspec.Struct, frozen=True, gc=False):
    """A stored prediction, with the position of its label."""

    position: int
    prediction_id: UUID
    created_at: datetime


async def take_labels(connection: Connection, labels: Sequence[Label]) -> Counter[Outcome]:
    """Apply `labels` in one transaction, keep those without a stored prediction pending; return counts by outcome.

    A label for an unknown prediction is `expired` when the time in its id is more than PENDING_DAYS ago, or when
    retention has dropped the rows of that time.
    """
    async with connection.transaction():
        applied = await _apply_labels(connection, labels)
        outcomes = applied.outcomes
        if pending := applied.find_pending():
            dropped_before = await read_dropped_before(connection)
        for position in pending:
            label = labels[position]
            oldest = max(label.received_at - timedelta(days=PENDING_DAYS), dropped_before)
            if _is_older(label.prediction_id, oldest):
                outcomes[position] = "expired"
        await _keep_pending(connection, [labels[at] for at in applied.find_pending()])
    return _count(applied)


async def sweep_pending(connection: Connection) -> Counter[Outcome]:
    """Apply pending labels whose prediction is stored now, drop those that are too old; return counts by outcome."""
    async with connection.transaction():
        now = await read_clock(connection)
        dropped_before = await read_dropped_before(connection)
        rows = await label_queries.take_pending(connection, SWEEP_ROWS)
        rows.sort(key=lambda row: int(row["pending_id"]))  # for equal times, the label that arrived last counts
        applied = await _apply_labels(connection, [Label(*row[1:]) for row in rows])
        for position in applied.find_pending():
            row = rows[position]
            if row["received_at"] < now - timedelta(days=PENDING_DAYS) or _is_older(
                row["prediction_id"], dropped_before
            ):
                applied.outcomes[position] = "expired"
        waiting = [rows[position]["pending_id"] for position in applied.find_pending()]
        settled = [rows[position]["pending_id"] for position in set(applied.outcomes) - set(applied.find_pending())]
        await label_queries.postpone_pending(connection, waiting, LONGEST_PAUSE)
        await label_queries.remove_pending(connection, settled)
    for position in applied.find_pending():
        del applied.outcomes[position]
    return _count(applied)


async def _apply_labels(connection: Connection, labels: Sequence[Label]) -> Applied:
    """Apply the labels whose prediction is stored; the outcome of the others is `pending`."""
    targets, rejected = await _find_targets(connection, labels)
    applied = Applied(dict.fromkeys(range(len(labels)), "pending"), [])
    for position in rejected:
        applied.outcomes[position] = "rejected"
    for batch in _split_repeated(targets):
        for some in _slice(batch):
            _note(applied, labels, some, await _write(connection, labels, some))
    return applied


async def _find_targets(connection: Connection, labels: Sequence[Label]) -> tuple[list[_Target], list[int]]:
    """Find the predictions of labels; return them, and the positions of labels whose class the model does not know."""
    ids = [(label.prediction_id, at) for at, label in enumerate(labels) if label.prediction_id is not None]
    keys = [(label.external_id, at) for at, label in enumerate(labels) if label.external_id is not None]
    ids.sort(key=lambda pair: pair[0].int)
    known: dict[str, frozenset[str]] = {}
    targets: list[_Target] = []
    rejected: list[int] = []

    def take(rows: Sequence[asyncpg.Record]) -> None:
        for position, prediction_id, created_at, classes in rows:
            if classes is None:
                continue  # the version is served, but not registered yet: the label stays pending
            if classes not in known:
                known[classes] = frozenset(map(str, msgspec.json.decode(classes)))
            label = labels[position].label
            if label is None or label in known[classes]:
                targets.append(_Target(position, prediction_id, created_at))
            else:
                rejected.append(position)

    for some in _slice(ids):
        take(await label_queries.find_by_id(connection, [at for _, at in some], [key for key, _ in some]))
    for others in _slice(keys):
        take(await label_queries.find_by_external_id(connection, [at for _, at in others], [key for key, _ in others]))
    return targets, rejected


def _slice(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + SLICE_LABELS] for start in range(0, len(items), SLICE_LABELS))


def _split_repeated(targets: Sequence[_Target]) -> list[list[_Target]]:
    """Split into batches with ascending and unique predictions, because a statement cannot change a row twice.

    The first batch has every prediction, so that it locks all the rows: all writers lock rows in the same order.
    """
    batches: list[list[_Target]] = []
    previous, repetition = None, 0
    for target in sorted(targets, key=lambda target: (target.prediction_id.int, target.position)):
        repetition = repetition + 1 if target.prediction_id == previous else 0
        previous = target.prediction_id
        if repetition == len(batches):
            batches.append([])
        batches[repetition].append(target)
    return batches


async def _write(connection: Connection, labels: Sequence[Label], targets: Sequence[_Target]) -> list[Outcome]:
    """Write the current labels and the history of unique, ascending predictions; return the outcome of each."""
    ids = [target.prediction_id for target in targets]
    events = [labels[target.position] for target in targets]
    classes = [event.label for event in events]
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


def _note(applied: Applied, labels: Sequence[Label], targets: Sequence[_Target], outcomes: Sequence[Outcome]) -> None:
    """Add the outcomes of labels and their delays; a label with several predictions has one outcome (STRENGTH)."""
    for target, outcome in zip(targets, outcomes, strict=True):
        before = applied.outcomes[target.position]
        if before not in STRENGTH or STRENGTH.index(outcome) > STRENGTH.index(before):
            applied.outcomes[target.position] = outcome
        if outcome == "new":
            delay = labels[target.position].received_at - target.created_at
            applied.delays.append(max(0.0, delay.total_seconds()))


async def _keep_pending(connection: Connection, labels: Sequence[Label]) -> None:
    if labels:
        await label_queries.add_pending(
            connection,
            [label.prediction_id for label in labels],
            [label.external_id for label in labels],
            [label.label for label in labels],
            [label.observed_at for label in labels],
            [label.received_at for label in labels],
        )


def _is_older(prediction_id: UUID | None, instant: datetime) -> bool:
    """Return whether this is a UUIDv7 made before `instant`; other UUIDs have no time in them."""
    if prediction_id is None or prediction_id.version != 7:
        return False
    return prediction_id.int >> 80 < instant.timestamp() * 1000


def _count(applied: Applied) -> Counter[Outcome]:
    """Add the outcomes to the metrics, after COMMIT, and return their counts."""
    counts = Counter(applied.outcomes.values())
    metrics.LABEL_DELAY.observe((), applied.delays)
    for outcome, count in counts.items():
        metrics.LABELS.labels(outcome).inc(count)
    return counts
