"""Labels in any order, repeated, in any batches and at the same time: one oracle says what stands in the end."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from uuid import UUID

import asyncpg
import httpx2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.quality.label_queries import fetch_history
from app.quality.label_targets import SLICE_LABELS, Label
from app.quality.labels import Outcome, take_labels
from tests.support.records import count_rows, make_label, make_record, register_demo, store

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

CLASSES = ("0", "1", "2", None)
"""Of the model in the property test; None withdraws."""


@st.composite
def arrivals(draw: st.DrawFn) -> list[list[tuple[int, int, str | None]]]:
    """Draw batches of (prediction, minutes after noon, label): shuffled, some repeated, times often equal."""
    event = st.tuples(st.integers(0, 2), st.integers(0, 4), st.sampled_from(CLASSES))
    events = draw(st.lists(event, min_size=1, max_size=14))
    repeated = draw(st.lists(st.sampled_from(events), max_size=6))
    shuffled = draw(st.permutations(events + repeated))
    edges = sorted(draw(st.lists(st.integers(1, len(shuffled)), max_size=4)))
    batches = [shuffled[start:stop] for start, stop in zip([0, *edges], [*edges, len(shuffled)], strict=True)]
    return [batch for batch in batches if batch]


def find_winners(labels: Sequence[Label]) -> dict[UUID, str | None]:
    """The oracle: the newest observation of each prediction, of equal ones that which came last."""
    winners: dict[UUID, Label] = {}
    for label in labels:
        assert label.prediction_id is not None
        standing = winners.get(label.prediction_id)
        if standing is None or label.observed_at >= standing.observed_at:
            winners[label.prediction_id] = label
    return {prediction_id: label.label for prediction_id, label in winners.items()}


async def read_labels(connection: asyncpg.Connection) -> dict[UUID, str | None]:
    rows = await connection.fetch("SELECT prediction_id, label FROM prediction_label")
    return {row["prediction_id"]: row["label"] for row in rows}


@given(batches=arrivals())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_newest_label_stands_in_any_order_of_arrival(
    connection: asyncpg.Connection, batches: list[list[tuple[int, int, str | None]]]
) -> None:
    records = [make_record(), make_record(), make_record()]
    await register_demo(connection, classes=(0, 1, 2))
    await store(connection, *records)
    labels = [
        [
            make_label(
                records[index].prediction_id, label, NOON + timedelta(minutes=minutes), NOON + timedelta(hours=number)
            )
            for index, minutes, label in batch
        ]
        for number, batch in enumerate(batches, 1)
    ]

    counts = [(await take_labels(connection, batch)).counts for batch in labels]

    posted = [label for batch in labels for label in batch]
    ids = {record.prediction_id for record in records}
    standing = {key: value for key, value in (await read_labels(connection)).items() if key in ids}
    assert standing == find_winners(posted)
    assert [count.total() for count in counts] == [len(batch) for batch in labels]
    for prediction_id in ids:
        kept = {(event["label"], event["observed_at"]) for event in await fetch_history(connection, prediction_id)}
        assert kept == {(each.label, each.observed_at) for each in posted if each.prediction_id == prediction_id}


async def test_newest_label_stands_when_eight_clients_correct_the_same_predictions(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    records = [make_record(external_id=f"order-{number}") for number in range(40)]
    await store(connection, *records)
    chance = random.Random(0)
    times = iter(chance.sample(range(10_000), 8 * 6 * 30))
    batches = [
        [
            make_label(each.prediction_id, chance.choice(["0", "1", None]), NOON + timedelta(seconds=next(times)))
            for each in chance.sample(records, 30)
        ]
        for _ in range(8 * 6)
    ]

    async def post(mine: Sequence[Sequence[Label]]) -> list[httpx2.Response]:
        return [await client.post("/labels", json={"labels": [render(label) for label in batch]}) for batch in mine]

    def render(label: Label) -> dict[str, object]:
        key = {"prediction_id": str(label.prediction_id)}
        if chance.random() < 0.3:
            key = {
                "external_id": next(
                    row.external_id or "" for row in records if row.prediction_id == label.prediction_id
                )
            }
        return {**key, "label": label.label, "observed_at": label.observed_at.isoformat()}

    answers = await asyncio.gather(*(post(batches[task::8]) for task in range(8)))

    counts = [answer.json() for answered in answers for answer in answered]
    assert {answer.status_code for answered in answers for answer in answered} == {200}
    assert all(count.pop("predictions") > 0 == len(count.pop("rejections")) for count in counts)
    assert all(sum(count.values()) == 2 * count["received"] == 60 for count in counts)
    assert await read_labels(connection) == find_winners(sorted((b for bs in batches for b in bs), key=by_time))
    assert await count_rows(connection, "prediction_label_history") == len(batches) * 30
    outcomes = Counter({outcome: sum(count[outcome] for count in counts) for outcome in counts[0]})
    labelled = sum(label is not None for label in (await read_labels(connection)).values())
    assert outcomes["new"] >= labelled
    assert outcomes["pending"] + outcomes["expired"] + outcomes["rejected"] == 0


async def test_no_writer_is_a_victim_of_a_deadlock_when_eight_send_the_same_predictions_in_other_orders(
    database_url: str, connection: asyncpg.Connection
) -> None:
    await register_demo(connection)
    records = [make_record(external_id=f"order-{number}") for number in range(2 * SLICE_LABELS)]
    await store(connection, *records)
    chance = random.Random(1)
    times = iter(chance.sample(range(10**6), 8 * len(records) * 2))

    def make_body() -> list[Label]:
        keys: list[UUID | str] = [each.prediction_id for each in records]
        keys += [each.external_id or "" for each in records]
        chance.shuffle(keys)
        return [make_label(key, chance.choice(["0", "1", None]), NOON + timedelta(seconds=next(times))) for key in keys]

    bodies = [make_body() for _ in range(8)]
    async with asyncpg.create_pool(database_url, min_size=8, max_size=8) as pool:

        async def take(body: Sequence[Label]) -> Counter[Outcome]:
            async with pool.acquire() as borrowed:
                return (await take_labels(borrowed, body)).counts

        counts = await asyncio.gather(*(take(body) for body in bodies))

    by_key = {each.external_id: each.prediction_id for each in records}
    posted = [
        replace(label, prediction_id=label.prediction_id or by_key[label.external_id]) for label in chain(*bodies)
    ]
    assert await read_labels(connection) == find_winners(sorted(posted, key=by_time))
    assert [count.total() for count in counts] == [2 * len(records)] * 8
    assert await count_rows(connection, "prediction_label_history") == len(posted)


def by_time(label: Label) -> datetime:
    return label.observed_at
