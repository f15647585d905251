"""Which class a label means in other spellings, and what the answer, /health and the gauges say of rejected labels."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx2
import pytest

from app.quality.label_classes import read_class_names
from app.quality.label_sweep import sweep_pending
from app.quality.labels import take_labels
from tests.support.answers import NDJSON_HEADERS
from tests.support.exposition import read_samples
from tests.support.processes import wait_until
from tests.support.records import make_label, make_record, register_demo, store

MEANT: dict[str, tuple[Sequence[int | str], str, set[str]]] = {
    "pandas-with-gaps": ([0, 1], "1.0", {"1"}),
    "exponent": ([0, 100_000], "1E+05", {"100000"}),
    "sign-and-zeros": ([-1, 1], "-01.00", {"-1"}),
    "true": ([0, 1], "true", {"1"}),
    "FALSE": ([0, 1], "FALSE", {"0"}),
    "true-among-texts-of-numbers": (["0.0", "1.0"], "True", {"1.0"}),
    "number-among-booleans": (["False", "True"], "1", {"True"}),
    "boolean-in-other-case": (["False", "True"], "TRUE", {"True"}),
    "text-in-other-case": (["Cat", "dog"], "CAT", {"Cat"}),
    "beyond-ascii-in-other-case": (["straße", "weg"], "STRASSE", {"straße"}),
    "name-before-other-spellings": (["1", "1.0"], "1", {"1"}),
    "two-numbers-fit": (["1", "1.0"], "1.00", {"1", "1.0"}),
    "two-texts-fit": (["cat", "Cat"], "CAT", {"cat", "Cat"}),
    "true-of-one-and-two": ([1, 2], "true", set()),
    "true-of-three": ([0, 1, 2], "true", set()),
    "true-of-minus-one-and-one": ([-1, 1], "true", set()),
    "first-letter": ([0, 1], "t", set()),
    "other-number": ([0, 1], "1.5", set()),
    "blank-behind": ([0, 1], "1 ", set()),
    "digits-of-another-script": ([0, 1], "\N{ARABIC-INDIC DIGIT ONE}", set()),
    "underscore": ([0, 10], "1_0", set()),
    "hexadecimal": ([0, 1], "0x1", set()),
    "huge-exponent": ([0, 1], "1e999999999", set()),
    "not-a-number": ([0, 1], "nan", set()),
    "beyond-double-precision": ([2**53, 2**53 + 1], "9007199254740993.0", {"9007199254740993"}),
}


@pytest.mark.parametrize(("classes", "label", "meant"), [pytest.param(*case, id=name) for name, case in MEANT.items()])
def test_label_means_the_only_class_that_fits(classes: Sequence[int | str], label: str, meant: set[str]) -> None:
    assert read_class_names(json.dumps(classes)).find(label) == meant


@pytest.mark.parametrize("spelling", ["1.0", "1", "true", "TRUE", 1.0])
async def test_spelling_is_stored_as_the_class(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, spelling: object
) -> None:
    record = make_record()
    await store(connection, record)

    answer = await client.post("/labels", json={"prediction_id": str(record.prediction_id), "label": spelling})

    assert answer.json()["new"] == 1
    assert await connection.fetchval("SELECT label FROM prediction_label") == "1"
    assert await connection.fetchval("SELECT label FROM prediction_label_history") == "1"


async def test_spellings_mean_the_class_of_each_model(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    await register_demo(connection, "approval", ("False", "True"))
    number, text = make_record(external_id="order-1"), make_record(external_id="order-1", model="approval")
    await store(connection, number, text)

    await take_labels(connection, [make_label("order-1", "TRUE", datetime.now(UTC))])

    rows = await connection.fetch("SELECT prediction_id, label FROM prediction_label")
    assert {row["prediction_id"]: row["label"] for row in rows} == {
        number.prediction_id: "1",
        text.prediction_id: "True",
    }


def make_labels(record: Any, *labels: object) -> list[dict[str, object]]:
    return [{"prediction_id": str(record.prediction_id), "label": label} for label in labels]


async def test_answer_says_why_labels_are_rejected(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    record = make_record()
    await store(connection, record)

    answer = await client.post("/labels", json={"labels": make_labels(record, "yes", 1, 2)})

    counts = answer.json()
    assert (counts["rejected"], counts["new"], counts["predictions"]) == (2, 1, 1)
    why = {"code": "unknown_class", "detail": "not a class of car-loan version 1", "allowed": [0, 1]}
    assert counts["rejections"] == [{"pointer": "/labels/0/label", **why}, {"pointer": "/labels/2/label", **why}]


async def test_answer_points_at_one_label_and_at_lines(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    record = make_record()
    await store(connection, record)
    [first, second] = make_labels(record, "yes", "no")

    one = await client.post("/labels", json=first)
    lines = await client.post("/labels", content=f"{json.dumps(first)}\n\n{json.dumps(second)}", headers=NDJSON_HEADERS)

    assert [each["pointer"] for each in one.json()["rejections"]] == ["/label"]
    assert [each["pointer"] for each in lines.json()["rejections"]] == ["/0/label", "/2/label"]


async def test_answer_says_when_several_classes_fit(client: httpx2.AsyncClient, connection: asyncpg.Connection) -> None:
    await register_demo(connection, "animals", ("cat", "Cat"))
    record = make_record(model="animals")
    await store(connection, record)

    answer = await client.post("/labels", json=make_labels(record, "CAT")[0])

    assert answer.json()["rejections"] == [
        {
            "pointer": "/label",
            "code": "ambiguous_class",
            "detail": "fits several classes of animals version 1",
            "allowed": ["cat", "Cat"],
        }
    ]


@pytest.mark.parametrize(("query", "listed"), [("", 20), ("?rejections=3", 3), ("?rejections=0", 0)])
async def test_answer_lists_the_first_rejections(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, query: str, listed: int
) -> None:
    record = make_record()
    await store(connection, record)

    answer = await client.post(f"/labels{query}", json={"labels": make_labels(record, *["no"] * 25)})

    assert answer.json()["rejected"] == 25
    pointers = [each["pointer"] for each in answer.json()["rejections"]]
    assert pointers == [f"/labels/{at}/label" for at in range(listed)]


async def test_answer_lists_some_classes_of_a_model_with_many(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    await register_demo(connection, "animals", [*range(1500)])
    record = make_record(model="animals")
    await store(connection, record)

    few = await client.post("/labels", json=make_labels(record, "cat")[0])
    many = await client.post("/labels?rejections=10000", json={"labels": make_labels(record, *["cat"] * 25)})

    assert few.json()["rejections"][0]["allowed"] == [*range(100)]
    assert few.json()["rejections"][0]["detail"] == "not a class of animals version 1, which has 1500"
    assert {len(each["allowed"]) for each in many.json()["rejections"]} == {10}


async def test_health_and_gauges_show_rejected_and_pending_labels(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    record = make_record()
    await store(connection, record)
    await client.post("/labels", json={"labels": make_labels(record, "yes", "no")})
    await client.post("/labels", json={"external_id": "nobody", "label": 1})
    shown: dict[str, Any] = {}

    async def is_shown() -> bool:
        shown.update((await client.get("/health")).json())
        labels = shown.get("labels") or {}
        return (labels.get("rejected"), labels.get("pending")) == (2, 1)

    await wait_until(is_shown)

    assert [(each["code"], each["detail"]) for each in shown["reasons"]] == [
        ("labels_rejected", "2 labels of the last hour fit no class of car-loan version 1: see GET /models")
    ]
    samples = await read_samples(client)
    assert (samples.get("model_rejected_labels"), samples.get("model_pending_labels")) == (2, 1)


async def test_health_names_labels_that_wait_for_over_an_hour(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    for key, hours in (("lost", 2), ("older", 26), ("fresh", 0)):
        arrived = datetime.now(UTC) - timedelta(hours=hours)
        await take_labels(
            connection, [make_label(key, "1", arrived), make_label(make_record().prediction_id, "1", arrived)]
        )
    shown: dict[str, Any] = {}

    async def is_shown() -> bool:
        shown.update((await client.get("/health")).json())
        return (shown.get("labels") or {}).get("pending") == 6

    await wait_until(is_shown)

    assert [(each["code"], each["detail"]) for each in shown["reasons"]] == [
        ("labels_pending", "2 labels have waited for over an hour for a prediction that is not stored")
    ]


async def test_label_that_the_sweep_rejects_is_counted(connection: asyncpg.Connection) -> None:
    await register_demo(connection)
    named, keyed = make_record(), make_record(external_id="order-1")
    now = datetime.now(UTC)
    await take_labels(connection, [make_label(named.prediction_id, "maybe", now), make_label("order-1", "maybe", now)])
    await store(connection, named, keyed)

    swept = await sweep_pending(connection)

    assert swept == {"rejected": 2}
    assert await connection.fetchval("SELECT sum(labels) FROM label_rejection") == 2
