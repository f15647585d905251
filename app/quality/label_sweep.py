"""Apply labels that came before their prediction was stored, and finish what a request left over."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

import asyncpg

from app.database.queries import Connection
from app.quality import key_label_queries, label_queries, label_status_queries, waiting_queries
from app.quality.key_label_queries import Step
from app.quality.label_classes import Rejection
from app.quality.label_targets import BEFORE_ALL, Found, Label, find_targets, follow_keys
from app.quality.labels import (
    PENDING_DAYS,
    Applied,
    Outcome,
    apply_labels,
    choose_stronger,
    is_older,
    keep_arrivals,
    publish_outcomes,
)
from app.quality.ledger_queries import read_dropped_before
from app.quality.queries import read_clock

SWEEP_ROWS = 5_000
"""Most labels in one transaction of the sweep."""

SWEEP_SECONDS = 10.0
"""For one kind of work in one run; what is left waits for the next run."""

LONGEST_PAUSE = timedelta(hours=1)
"""The longest pause between two tries to apply a label."""

KEPT_FOR = timedelta(days=PENDING_DAYS)
"""How long a label under a key counts for predictions that are stored after it."""

EXPIRED_AFTER = KEPT_FOR + timedelta(hours=1)
"""When a label under a key is removed: a transaction that stored a prediction in time may end later."""

REJECTIONS_KEPT = timedelta(days=7)
"""How long the counts of rejected labels are kept."""

SweepWork = Callable[[Connection], Awaitable[tuple[bool, Counter[Outcome]]]]
"""One transaction of work: return whether there may be more, and the labels by outcome."""


async def sweep_pending(connection: Connection) -> Counter[Outcome]:
    """Apply what can be applied now, drop what is too old; return counts by outcome.

    Predictions that came after a label for them go first: labels of unknown predictions do not delay the others.
    """
    counts = Counter[Outcome]()
    await key_label_queries.adopt_pending(connection)
    now = await read_clock(connection)
    for work in (_label_arrivals, partial(_try_pending, due=now), _look_under_keys, _expire_key_labels):
        counts += await _repeat(work, connection)
    await waiting_queries.drop_old_arrivals(connection, KEPT_FOR)
    await label_status_queries.drop_old_rejections(connection, REJECTIONS_KEPT)
    return counts


async def _repeat(work: SweepWork, connection: Connection) -> Counter[Outcome]:
    counts, deadline, is_more = Counter[Outcome](), time.monotonic() + SWEEP_SECONDS, True
    while is_more and time.monotonic() < deadline:
        is_more, outcomes = await work(connection)
        counts += outcomes
    return counts


async def _label_arrivals(connection: Connection) -> tuple[bool, Counter[Outcome]]:
    """Label predictions that were stored after a label for them was received."""
    async with connection.transaction():
        arrivals = await waiting_queries.take_arrivals(connection, SWEEP_ROWS)
        if not arrivals:
            return False, Counter()
        ready = await _find_ready(connection, arrivals)
        ids = [row["prediction_id"] for row in ready]
        keyed = [row for row in ready if row["external_id"] is not None]
        keys = [row["external_id"] for row in keyed]
        pending = await waiting_queries.take_pending_of(connection, ids)
        first_met = await key_label_queries.meet_keys(connection, keys)
        kept = await key_label_queries.find_key_labels(
            connection, [row["prediction_id"] for row in keyed], keys, [row["stored_at"] for row in keyed], KEPT_FOR
        )
        kept.sort(key=lambda row: (row["received_at"], row["position"]))  # for equal times, the last counts
        labels = [Label(row["prediction_id"], None, *_read_event(row)) for row in (*pending, *kept)]
        applied = await apply_labels(connection, labels, await find_targets(connection, labels))
        owners: list[object] = [row["pending_id"] for row in pending]
        owners += [row["label_id"] if row["label_id"] in first_met else None for row in kept]
        outcomes = await _sum_up(connection, applied, owners)
        outcomes |= dict.fromkeys(first_met - outcomes.keys(), "unchanged")  # those that too many others outdo
        held = await waiting_queries.find_held_pending(connection, ids, [row["pending_id"] for row in pending])
        held_keys = await key_label_queries.find_held_keys(connection, keys)
        done = {
            row["arrival_id"]
            for row in ready
            if row["prediction_id"] not in held and row["external_id"] not in held_keys
        }
        late = [row["arrival_id"] for row in arrivals if row["arrival_id"] not in done]
        await waiting_queries.remove_pending(connection, [row["pending_id"] for row in pending])
        await waiting_queries.remove_arrivals(connection, list(done))
        await waiting_queries.postpone_arrivals(connection, late, LONGEST_PAUSE)
    return len(arrivals) == SWEEP_ROWS, publish_outcomes(outcomes.values(), applied.delays)


async def _find_ready(connection: Connection, arrivals: Sequence[asyncpg.Record]) -> list[asyncpg.Record]:
    """Return the arrivals whose version is registered."""
    rows = sorted(arrivals, key=lambda row: row["prediction_id"].int)
    found = await label_queries.find_by_id(connection, range(len(rows)), [row["prediction_id"] for row in rows])
    return [rows[row["position"]] for row in found if row["classes"] is not None]


def _read_event(row: asyncpg.Record) -> tuple[str | None, datetime, datetime]:
    return row["label"], row["observed_at"], row["received_at"]


async def _sum_up(connection: Connection, applied: Applied, owners: Sequence[object]) -> dict[object, Outcome]:
    """Return one outcome of each owner of positions, and count the rejected ones; None: counted before."""
    outcomes: dict[object, Outcome] = {}
    rejections: dict[object, Rejection] = {}
    for position, owner in enumerate(owners):
        if owner is not None and (outcome := applied.outcomes[position]) != "pending":
            outcomes[owner] = choose_stronger(outcomes.get(owner), outcome)
            if position in applied.found.rejected:
                rejections[owner] = applied.found.rejected[position]
    refused = [rejection for owner, rejection in rejections.items() if outcomes[owner] == "rejected"]
    await label_status_queries.add_rejections(connection, refused)
    return outcomes


async def _try_pending(connection: Connection, due: datetime) -> tuple[bool, Counter[Outcome]]:
    """Try labels that wait for an id: their prediction may have been stored at the same moment as they."""
    async with connection.transaction():
        rows = await waiting_queries.take_pending(connection, due, SWEEP_ROWS)
        if not rows:
            return False, Counter()
        now = await read_clock(connection)
        dropped_before = await read_dropped_before(connection)
        rows.sort(key=lambda row: int(row["pending_id"]))  # for equal times, the label that arrived last counts
        labels = [Label(row["prediction_id"], None, *_read_event(row)) for row in rows]
        applied = await apply_labels(connection, labels, await find_targets(connection, labels))
        for position in applied.find_pending():
            row = rows[position]
            if row["received_at"] < now - KEPT_FOR or is_older(row["prediction_id"], dropped_before):
                applied.outcomes[position] = "expired"
        ids = [row["pending_id"] for row in rows]
        waiting = [ids[at] for at in applied.find_pending()]
        outcomes = await _sum_up(connection, applied, ids)
        await waiting_queries.postpone_pending(connection, waiting, LONGEST_PAUSE)
        await waiting_queries.remove_pending(connection, list(set(ids).difference(waiting)))
    return len(rows) == SWEEP_ROWS, publish_outcomes(outcomes.values(), applied.delays)


async def _look_under_keys(connection: Connection) -> tuple[bool, Counter[Outcome]]:
    """Go on with labels under keys, each through its stages.

    `rest`: go through the predictions that the request left over. `fence`: wait until no transaction can store a
    prediction without seeing the label. `look`, or `last` after the first part of many: go through all predictions once
    more. From then on, `settled`: each new prediction under the key is an arrival.
    """
    async with connection.transaction():
        rows = await key_label_queries.take_key_labels(connection, SWEEP_ROWS)
        if not rows:
            return False, Counter()
        fenced = [row["label_id"] for row in rows if row["stage"] == "fence"]
        await key_label_queries.set_fence(connection, fenced)
        rows = [row for row in rows if row["stage"] != "fence"]
        labels = [Label(None, row["external_id"], *_read_event(row)) for row in rows]
        found = Found()
        keys = [(at, row["external_id"], row["looked_to"] or BEFORE_ALL) for at, row in enumerate(rows)]
        await follow_keys(connection, labels, keys, found)
        applied = await apply_labels(connection, labels, found)
        await keep_arrivals(connection, labels, found)
        outcomes = await _sum_up(
            connection, applied, [at if row["is_pending"] else None for at, row in enumerate(rows)]
        )
        steps = [_choose_step(row, at, applied) for at, row in enumerate(rows)]
        await key_label_queries.move_on(connection, steps, LONGEST_PAUSE)
        settled = {row["external_id"] for row, step in zip(rows, steps, strict=True) if step.stage == "settled"}
        await key_label_queries.remove_outdone(connection, list(settled))
    return True, publish_outcomes(outcomes.values(), applied.delays)


def _choose_step(row: asyncpg.Record, position: int, applied: Applied) -> Step:
    """Return what follows after the predictions that were found for a label under a key."""
    stage, looked_to = row["stage"], applied.found.looked_to.get(position)
    if stage == "look" and not row["is_behind_fence"]:
        looked_to = None  # look at all of them again
    elif looked_to is not None:
        stage = "rest" if stage == "rest" else "last"
    else:
        stage = "fence" if stage == "rest" else "settled"
    is_pending = row["is_pending"] and applied.outcomes[position] == "pending"
    return Step(row["label_id"], stage, looked_to, is_pending)


async def _expire_key_labels(connection: Connection) -> tuple[bool, Counter[Outcome]]:
    """Remove labels that are too old for a new prediction under their key."""
    async with connection.transaction():
        expired = await key_label_queries.expire_key_labels(connection, EXPIRED_AFTER, SWEEP_ROWS)
    return len(expired) == SWEEP_ROWS, publish_outcomes(["expired"] * sum(expired), [])
