"""Take labels: the newest observation wins, every one is kept, those without a stored prediction wait for it."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import asyncpg
import msgspec

from app import metrics
from app.database.queries import Connection
from app.quality import queries
from app.quality.ledger_queries import read_dropped_before

Outcome = Literal["new", "unchanged", "corrected", "withdrawn", "pending", "expired", "rejected"]

PENDING_DAYS = 30
"""How long a label waits for its prediction; a prediction is stored within seconds, or hours after an outage."""

SWEEP_ROWS = 5_000
"""Pending labels looked at in one run of the job; more wait for the next."""

LONGEST_PAUSE = timedelta(hours=1)
"""Between two looks at an old pending label."""

STRENGTH: Sequence[Outcome] = ("unchanged", "withdrawn", "new", "corrected")
"""Which outcome one label is counted under when its external id has several predictions: the last of these."""


class Label(msgspec.Struct, frozen=True, gc=False):
    """One received label. One of the two keys is set; `label` is the class as text, None withdraws."""

    prediction_id: UUID | None
    external_id: str | None
    label: str | None
    observed_at: datetime
    received_at: datetime


class Applied(msgspec.Struct):
    """What became of labels, by position, and the seconds from each newly labelled prediction to its label."""

    outcomes: dict[int, Outcome]
    delays: list[float]

    def find_pending(self) -> list[int]:
        """Return the positions of labels whose prediction is not stored yet."""
        return [position for position, outcome in self.outcomes.items() if outcome == "pending"]


class _Target(msgspec.Struct, frozen=True, gc=False):
    """A stored prediction that a label is for."""

    position: int
    prediction_id: UUID
    created_at: datetime


async def take_labels(connection: Connection, labels: Sequence[Label]) -> Counter[Outcome]:
    """Apply `labels` in one transaction and keep the others pending; count what became of each.

    A label for an unknown prediction whose id is over PENDING_DAYS old, or of a time that retention has dropped, is
    `expired`: nothing is left to wait for.
    """
    async with connection.transaction():
        applied = await apply_labels(connection, labels)
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
    """Apply pending labels whose prediction has been stored, drop those that waited too long; count both."""
    async with connection.transaction():
        now = await queries.read_clock(connection)
        dropped_before = await read_dropped_before(connection)
        rows = await queries.take_pending(connection, SWEEP_ROWS)
        rows.sort(key=lambda row: int(row["pending_id"]))  # the order of arrival decides between equal times
        applied = await apply_labels(connection, [Label(*row[1:]) for row in rows])
        for position in applied.find_pending():
            row = rows[position]
            if row["received_at"] < now - timedelta(days=PENDING_DAYS) or _is_older(
                row["prediction_id"], dropped_before
            ):
                applied.outcomes[position] = "expired"
        waiting = [rows[position]["pending_id"] for position in applied.find_pending()]
        settled = [rows[position]["pending_id"] for position in set(applied.outcomes) - set(applied.find_pending())]
        await queries.postpone_pending(connection, waiting, LONGEST_PAUSE)
        await queries.remove_pending(connection, settled)
    for position in applied.find_pending():
        del applied.outcomes[position]
    return _count(applied)


async def apply_labels(connection: Connection, labels: Sequence[Label]) -> Applied:
    """Apply every label whose prediction is stored; the others' outcome is `pending`."""
    if not labels:
        return Applied({}, [])
    targets, rejected = await _find_targets(connection, labels)
    outcomes: dict[int, Outcome] = dict.fromkeys(range(len(labels)), "pending")
    for position in rejected:
        outcomes[position] = "rejected"
    applied: list[tuple[_Target, Outcome]] = []
    for batch in _split_repeated(targets):
        applied += await _upsert(connection, labels, batch)
    await _append_history(connection, labels, applied)
    for target, outcome in applied:
        before = outcomes[target.position]
        if before not in STRENGTH or STRENGTH.index(outcome) > STRENGTH.index(before):
            outcomes[target.position] = outcome
    delays = [
        max(0.0, (labels[target.position].received_at - target.created_at).total_seconds())
        for target, outcome in applied
        if outcome == "new"
    ]
    return Applied(outcomes, delays)


async def _find_targets(connection: Connection, labels: Sequence[Label]) -> tuple[list[_Target], set[int]]:
    """Find the stored predictions of labels; return them, and the positions whose class their model does not know."""
    ids = [(at, label.prediction_id) for at, label in enumerate(labels) if label.prediction_id is not None]
    keys = [(at, label.external_id) for at, label in enumerate(labels) if label.external_id is not None]
    rows = await queries.find_by_id(connection, [at for at, _ in ids], [key for _, key in ids]) if ids else []
    if keys:
        rows += await queries.find_by_external_id(connection, [at for at, _ in keys], [key for _, key in keys])
    known: dict[str | None, frozenset[str]] = {}
    targets, rejected = [], set()
    for row in rows:
        text = row["classes"]
        if text not in known:
            known[text] = frozenset(map(str, msgspec.json.decode(text or "[]")))
        label = labels[row["position"]].label
        if label is None or label in known[text]:
            targets.append(_Target(row["position"], row["prediction_id"], row["created_at"]))
        else:
            rejected.add(row["position"])
    return targets, rejected


def _split_repeated(targets: Sequence[_Target]) -> list[list[_Target]]:
    """Split into batches in which each prediction stands once, ascending: one statement cannot change a row twice."""
    batches: defaultdict[int, list[_Target]] = defaultdict(list)
    seen: Counter[UUID] = Counter()
    for target in sorted(targets, key=lambda target: target.position):
        batches[seen[target.prediction_id]].append(target)
        seen[target.prediction_id] += 1
    return [sorted(batch, key=lambda target: target.prediction_id) for batch in batches.values()]


async def _upsert(
    connection: Connection, labels: Sequence[Label], batch: Sequence[_Target]
) -> list[tuple[_Target, Outcome]]:
    events = [labels[target.position] for target in batch]
    rows = await queries.upsert_labels(
        connection,
        [target.prediction_id for target in batch],
        [event.label for event in events],
        [event.observed_at for event in events],
        [event.received_at for event in events],
    )
    written = {row["prediction_id"]: row for row in rows}
    return [(target, _name_outcome(written.get(target.prediction_id))) for target in batch]


def _name_outcome(row: asyncpg.Record | None) -> Outcome:
    """Name what an upsert did from the row it wrote, None when an equal or newer observation stood already."""
    if row is None:
        return "unchanged"
    label, previous, first = row["label"], row["previous_label"], row["revision"] == 1
    if label == previous and not first:
        return "unchanged"
    if label is None:
        return "withdrawn"
    return "new" if previous is None else "corrected"


async def _append_history(
    connection: Connection, labels: Sequence[Label], applied: Sequence[tuple[_Target, Outcome]]
) -> None:
    events = [labels[target.position] for target, _ in applied]
    await queries.append_history(
        connection,
        [target.prediction_id for target, _ in applied],
        [event.label for event in events],
        [event.observed_at for event in events],
        [event.received_at for event in events],
        [outcome for _, outcome in applied],
    )


async def _keep_pending(connection: Connection, labels: Sequence[Label]) -> None:
    if labels:
        await queries.add_pending(
            connection,
            [label.prediction_id for label in labels],
            [label.external_id for label in labels],
            [label.label for label in labels],
            [label.observed_at for label in labels],
            [label.received_at for label in labels],
        )


def _is_older(prediction_id: UUID | None, instant: datetime) -> bool:
    """Tell whether a UUIDv7 was made before `instant`; other UUIDs carry no time."""
    if prediction_id is None or prediction_id.version != 7:
        return False
    return prediction_id.int >> 80 < instant.timestamp() * 1000


def _count(applied: Applied) -> Counter[Outcome]:
    """Count in the metrics, after COMMIT, what has been applied."""
    counts = Counter(applied.outcomes.values())
    for delay in applied.delays:
        metrics.LABEL_DELAY.observe(delay)
    for outcome, count in counts.items():
        metrics.LABELS.labels(outcome).inc(count)
    return counts
