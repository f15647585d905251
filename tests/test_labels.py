"""POST /labels: what becomes of each label, and what the prediction shows afterwards."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx2
import pytest

from app.prediction_log.record import Record, make_prediction_ids
from tests.support.records import count_rows, make_record, round_ms, store

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


async def post(client: httpx2.AsyncClient, *labels: Mapping[str, object]) -> dict[str, int]:
    """Post labels in one batch; return the outcomes that are not zero, once they are known to add up."""
    answer = await client.post("/labels", json={"labels": labels})
    return read_outcomes(answer, len(labels))


def read_outcomes(answer: httpx2.Response, received: int) -> dict[str, int]:
    assert answer.status_code == 200, answer.text
    counts: dict[str, int] = answer.json()
    assert counts.pop("received") == received
    del counts["predictions"], counts["rejections"]
    assert set(counts) == {"new", "unchanged", "corrected", "withdrawn", "pending", "expired", "rejected"}
    assert sum(counts.values()) == received
    return {outcome: count for outcome, count in counts.items() if count}


def label(of: Record, value: object, minutes: float | None = None) -> dict[str, object]:
    """A label of a row, observed some minutes after noon or, without them, when it is received."""
    observed = {} if minutes is None else {"observed_at": (NOON + timedelta(minutes=minutes)).isoformat()}
    return {"prediction_id": str(of.prediction_id), "label": value, **observed}


async def read_label(client: httpx2.AsyncClient, of: Record) -> Any:
    shown = (await client.get(f"/predictions/{of.prediction_id}")).json()
    return shown["label"] and shown["label"]["label"]


async def read_history(client: httpx2.AsyncClient, of: Record) -> Sequence[tuple[Any, str]]:
    shown = (await client.get(f"/predictions/{of.prediction_id}")).json()
    return [(event["label"], event["outcome"]) for event in shown["label_history"]]


@pytest.fixture
async def row(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> Record:
    """A stored prediction of the running server's model."""
    record = make_record(external_id="order-1")
    await store(connection, record)
    return record


async def test_label_is_new_when_its_served_prediction_has_none(client: httpx2.AsyncClient) -> None:
    served = (await client.post("/predict", json={"features": [1.5, 2.3, 3.1, 4.2, 5.0]})).json()

    outcomes = await post(client, {"prediction_id": served["prediction_id"], "label": 1})

    assert outcomes == {"new": 1}
    assert (await client.get(f"/predictions/{served['prediction_id']}")).json()["label"]["label"] == 1


async def test_label_is_found_by_external_id(client: httpx2.AsyncClient, row: Record) -> None:
    outcomes = await post(client, {"external_id": "order-1", "label": 0})

    assert outcomes == {"new": 1}
    assert await read_label(client, row) == 0


async def test_single_label_is_taken_without_a_list(client: httpx2.AsyncClient, row: Record) -> None:
    answer = await client.post("/labels", json=label(row, 1))

    assert read_outcomes(answer, 1) == {"new": 1}


async def test_labels_are_taken_line_by_line(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, row: Record
) -> None:
    other = make_record()
    await store(connection, other)
    lines = "\n".join(json.dumps(each) for each in (label(row, 1), label(other, 0))) + "\n\n"

    answer = await client.post("/labels", content=lines, headers={"Content-Type": "application/x-ndjson"})

    assert read_outcomes(answer, 2) == {"new": 2}
    assert [await read_label(client, each) for each in (row, other)] == [1, 0]


async def test_no_label_is_taken_when_one_line_is_malformed(client: httpx2.AsyncClient, row: Record) -> None:
    lines = f'{json.dumps(label(row, 1))}\n{{"label": 1'

    answer = await client.post("/labels", content=lines, headers={"Content-Type": "application/x-ndjson"})

    assert answer.status_code in (400, 422)
    assert "line 2" in answer.text
    assert await read_label(client, row) is None


async def test_no_label_is_taken_when_one_of_the_batch_is_wrong(client: httpx2.AsyncClient, row: Record) -> None:
    wrong = {"external_id": "order-1", "label": 1.5}

    answer = await client.post("/labels", json={"labels": [label(row, 1), wrong]})

    assert answer.status_code == 422, answer.text
    assert await read_label(client, row) is None


async def test_label_is_unchanged_when_it_is_sent_again(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0))

    outcomes = await post(client, label(row, 1, 0))

    assert outcomes == {"unchanged": 1}
    assert await read_history(client, row) == [(1, "new")]


async def test_label_is_unchanged_when_an_older_one_follows(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 5))

    outcomes = await post(client, label(row, 0, 4))

    assert outcomes == {"unchanged": 1}
    assert await read_label(client, row) == 1
    assert await read_history(client, row) == [(1, "new"), (0, "unchanged")]


async def test_label_is_unchanged_when_it_is_observed_again_later(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0))

    outcomes = [await post(client, label(row, 1, 2)), await post(client, label(row, 0, 1))]

    assert outcomes == [{"unchanged": 1}, {"unchanged": 1}]
    assert await read_label(client, row) == 1


async def test_label_is_corrected_when_a_newer_one_differs(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0))

    outcomes = await post(client, label(row, 0, 1))

    assert outcomes == {"corrected": 1}
    assert await read_label(client, row) == 0


async def test_label_that_arrives_later_wins_when_times_are_equal(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0))

    outcomes = await post(client, label(row, 0, 0))

    assert outcomes == {"corrected": 1}
    assert await read_label(client, row) == 0


async def test_label_is_withdrawn_by_null(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0))

    outcomes = await post(client, label(row, None, 1))

    assert outcomes == {"withdrawn": 1}
    assert await read_label(client, row) is None


async def test_label_is_unchanged_when_it_is_older_than_the_withdrawal(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, None, 5))

    outcomes = await post(client, label(row, 1, 4))

    assert outcomes == {"unchanged": 1}
    assert await read_label(client, row) is None


async def test_label_is_new_after_a_withdrawal(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0), label(row, None, 1))

    outcomes = await post(client, label(row, 1, 2))

    assert outcomes == {"new": 1}
    assert await read_history(client, row) == [(1, "new"), (None, "withdrawn"), (1, "new")]


async def test_withdrawal_is_unchanged_when_repeated(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, None, 0))

    outcomes = await post(client, label(row, None, 1))

    assert outcomes == {"unchanged": 1}


async def test_label_is_rejected_when_the_model_does_not_know_its_class(
    client: httpx2.AsyncClient, row: Record
) -> None:
    outcomes = await post(client, label(row, 2), label(row, "yes"), label(row, ""), label(row, "1 "), label(row, 1))

    assert outcomes == {"rejected": 4, "new": 1}
    assert await read_history(client, row) == [(1, "new")]


@pytest.mark.parametrize("spelling", [1, "1", 1.0])
async def test_label_is_the_same_class_in_every_spelling(
    client: httpx2.AsyncClient, row: Record, spelling: object
) -> None:
    await post(client, label(row, 1, 0))

    outcomes = await post(client, label(row, spelling, 0))

    assert outcomes == {"unchanged": 1}
    assert await read_label(client, row) == 1


async def test_newest_label_wins_when_one_batch_has_several(client: httpx2.AsyncClient, row: Record) -> None:
    outcomes = await post(client, label(row, 1, 1), label(row, 0, 3), label(row, 1, 2), label(row, 0, 3))

    assert outcomes == {"new": 1, "corrected": 1, "unchanged": 2}
    assert await read_label(client, row) == 0


async def test_history_keeps_a_label_once_when_a_batch_repeats_it(client: httpx2.AsyncClient, row: Record) -> None:
    await post(client, label(row, 1, 0), label(row, 1, 0))

    assert await read_history(client, row) == [(1, "new")]


async def test_label_holds_for_every_prediction_of_its_external_id(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, row: Record
) -> None:
    retried = make_record(external_id="order-1")
    await store(connection, retried)
    await post(client, label(row, 1, 0))

    outcomes = await post(client, {"external_id": "order-1", "label": 0})

    assert outcomes == {"corrected": 1}
    assert [await read_label(client, each) for each in (row, retried)] == [0, 0]


async def test_label_is_expired_when_its_unknown_prediction_is_over_thirty_days_old(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    days = [timedelta(days=30, minutes=1), timedelta(days=30, minutes=-1)]
    ids = [make_prediction_ids(round_ms(now - age), 1)[0] for age in days]

    outcomes = await post(client, *({"prediction_id": str(each), "label": 1} for each in ids))

    assert outcomes == {"expired": 1, "pending": 1}
    assert await count_rows(connection, "pending_label") == 1


async def test_label_of_an_old_stored_prediction_is_new(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    old = make_record(datetime.now(UTC) - timedelta(days=90))
    await store(connection, old)

    outcomes = await post(client, label(old, 1))

    assert outcomes == {"new": 1}
