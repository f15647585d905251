import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx2
import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from asgi_lifespan import LifespanManager
from starlette.types import Message

from app import main
from tests.conftest import OpenClient
from tests.support.answers import BY_NAME, FEATURES, NAMES, pick, predict, scrape
from tests.support.onnx_files import write_squares
from tests.support.processes import ROOT

DEMO_MODEL = ROOT / "demo" / "models" / "car-loan" / "1" / "model.onnx"

MEMBERS = {"prediction_id", "prediction", "score", "probabilities", "model", "model_version"}

OTHER_ROW = (39811.0, 0.63295025, 19.0, 0.2126533, 40.0)
"""The first row of the recorded reference data, which the example's row does not resemble."""


def score_by_hand(rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return the demo model's probabilities (n, 2) from onnxruntime; with more threads it rounds otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(DEMO_MODEL.read_bytes(), options, providers=["CPUExecutionProvider"])
    answer: npt.NDArray[np.float32] = session.run(["probabilities"], {"features": np.array(rows, np.float32)})[0]
    return answer


def make_rows(count: int) -> list[list[float]]:
    """Make rows that spread over both classes, the same ones every time."""
    values = np.random.default_rng(7).uniform((500, 0, 5, 0, 0), (60_000, 2, 30, 10, 100), (count, 5))
    rows: list[list[float]] = values.round(4).tolist()
    return rows


async def test_predict_answers_the_contracts_members_when_asked_for_one_row(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/predict", json={"features": FEATURES})

    body = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert set(body) == MEMBERS
    assert {name: type(value) for name, value in body.items()} == {
        "prediction_id": str,
        "prediction": int,
        "score": float,
        "probabilities": dict,
        "model": str,
        "model_version": str,
    }
    assert (body["model"], body["model_version"]) == ("car-loan", "1")


@pytest.mark.parametrize("row", [FEATURES, OTHER_ROW], ids=["example", "reference"])
async def test_predict_equals_onnxruntime_exactly_when_read_as_float32(
    client: httpx2.AsyncClient, row: tuple[float, ...]
) -> None:
    expected = score_by_hand([row])[0]

    body = await predict(client, features=row)

    assert body["probabilities"] == {"0": float(expected[0]), "1": float(expected[1])}
    assert body["score"] == body["probabilities"]["1"]
    assert body["prediction"] == int(expected[1] >= 0.5)


async def test_predict_gives_an_id_of_version_7_and_of_now_when_answered(client: httpx2.AsyncClient) -> None:
    before = time.time_ns() // 1_000_000

    prediction_id = UUID((await predict(client))["prediction_id"])

    assert (prediction_id.version, prediction_id.variant) == (7, "specified in RFC 4122")
    assert before <= prediction_id.int >> 80 <= time.time_ns() // 1_000_000


async def test_predict_equals_by_position_when_features_are_named_in_any_order(client: httpx2.AsyncClient) -> None:
    by_position = await predict(client, features=OTHER_ROW)

    by_name = await predict(client, features=dict(reversed(list(zip(NAMES, OTHER_ROW, strict=True)))))

    del by_position["prediction_id"], by_name["prediction_id"]
    assert by_name == by_position


async def test_predict_keeps_the_order_of_rows_when_arrays_and_objects_are_mixed(client: httpx2.AsyncClient) -> None:
    expected = score_by_hand([OTHER_ROW, FEATURES, OTHER_ROW])[:, 1].tolist()

    body = await predict(client, instances=[OTHER_ROW, BY_NAME, dict(zip(NAMES, OTHER_ROW, strict=True))])

    assert set(body) == {"predictions", "model", "model_version"}
    assert [set(row) for row in body["predictions"]] == [MEMBERS] * 3
    assert [row["score"] for row in body["predictions"]] == expected
    ids = [row["prediction_id"] for row in body["predictions"]]
    assert ids == sorted(set(ids))


async def test_predict_answers_many_when_instances_has_one_row(client: httpx2.AsyncClient) -> None:
    body = await predict(client, instances=[FEATURES])

    assert len(body["predictions"]) == 1


async def test_predict_equals_single_rows_when_the_batch_is_as_large_as_allowed(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    rows = make_rows(10_000)
    sample = range(0, 10_000, 499)

    many = (await predict(client, instances=rows))["predictions"]

    single = [await predict(client, features=rows[index]) for index in sample]
    assert [many[index]["score"] for index in sample] == [one["score"] for one in single]
    assert [row["score"] for row in many] == score_by_hand(rows)[:, 1].tolist()
    assert {row["prediction"] for row in many} == {0, 1}
    assert await connection.fetchval("SELECT count(*) FROM prediction_log") == 10_000 + len(sample)


@pytest.mark.parametrize(
    "asked",
    [
        {"model": "car-loan"},
        {"version": "1"},
        {"version": 1},
        {"model": "car-loan", "version": 1},
        {"model": None, "version": None, "external_id": None},
    ],
    ids=["model", "version-text", "version-number", "both", "nulls"],
)
async def test_predict_serves_the_version_when_asked_for(client: httpx2.AsyncClient, asked: dict[str, object]) -> None:
    body = await predict(client, **asked)

    assert (body["model"], body["model_version"]) == ("car-loan", "1")


async def test_predict_stores_what_it_answers_when_one_row_is_asked_for(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    answer = await client.post(
        "/predict", json={"features": BY_NAME, "external_id": "order-17"}, headers={"x-request-id": "req-1"}
    )

    body = answer.json()
    prediction_id = UUID(body["prediction_id"])
    row = dict(await connection.fetchrow("SELECT * FROM prediction_log") or {})
    assert msgspec.json.decode(row.pop("features")) == BY_NAME
    assert row == {
        "prediction_id": prediction_id,
        "created_at": datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=prediction_id.int >> 80),
        "model_name": "car-loan",
        "model_version": "1",
        "predicted_class": str(body["prediction"]),
        "score": body["score"],
        "probabilities": list(body["probabilities"].values()),
        "external_id": "order-17",
        "request_id": "req-1",
        "role": "live",
    }


async def test_predict_stores_every_row_under_its_own_key_when_external_ids_are_sent(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    rows = make_rows(3)

    body = await predict(client, instances=rows, external_ids=["a", None, "b"])

    stored = await connection.fetch("SELECT * FROM prediction_log ORDER BY prediction_id")
    assert [str(row["prediction_id"]) for row in stored] == [row["prediction_id"] for row in body["predictions"]]
    assert [row["external_id"] for row in stored] == ["a", None, "b"]
    assert [row["score"] for row in stored] == [row["score"] for row in body["predictions"]]
    assert [msgspec.json.decode(row["features"]) for row in stored] == [
        dict(zip(NAMES, row, strict=True)) for row in rows
    ]


@pytest.mark.parametrize(
    "external_id",
    ["'; DROP TABLE prediction_log; --", "ключ 🔑", "x" * 200, ""],
    ids=["sql", "unicode", "200", "empty"],
)
async def test_predict_stores_the_external_id_verbatim_when_it_is_any_text(
    client: httpx2.AsyncClient, connection: asyncpg.Connection, external_id: str
) -> None:
    await predict(client, external_id=external_id)

    assert await connection.fetchval("SELECT external_id FROM prediction_log") == external_id


async def test_predict_serves_the_highest_version_when_none_is_asked_for(
    open_client: OpenClient, tmp_path: Path
) -> None:
    for version in ("9", "10"):
        write_squares(tmp_path, "squares", version, ["no", "yes"])

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        answers = [await predict(client, features=[0.5, 0.7], **asked) for asked in ({}, {"version": 9})]

    assert [answer["model_version"] for answer in answers] == ["10", "9"]


async def test_predict_serves_the_default_model_when_there_are_several(open_client: OpenClient, tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_squares(tmp_path, name, "1", ["no", "yes"])

    async with open_client(MODEL_DIR=str(tmp_path), DEFAULT_MODEL="second") as client:
        answers = [await predict(client, features=[0.5, 0.7], **asked) for asked in ({}, {"model": "first"})]

    assert [answer["model"] for answer in answers] == ["second", "first"]


@pytest.mark.parametrize(
    ("features", "prediction", "score"),
    [([0.75, 0.25], "no", 0.1), ([0.25, 0.75], "yes", 0.9)],
    ids=["negative", "positive"],
)
async def test_predict_scores_the_last_class_when_two_are_given_as_text(
    open_client: OpenClient, tmp_path: Path, features: list[float], prediction: str, score: float
) -> None:
    write_squares(tmp_path, "squares", "1", ["no", "yes"])

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        body = await predict(client, features=features)

    assert (body["prediction"], body["score"]) == (prediction, pytest.approx(score))
    assert body["probabilities"] == pytest.approx({"no": 1 - score, "yes": score})


async def test_predict_scores_the_predicted_class_when_there_are_three(open_client: OpenClient, tmp_path: Path) -> None:
    write_squares(tmp_path, "squares", "1", [7, 8, 9])

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        body = await predict(client, features=[0.25, 0.75, 0.5])

    assert (body["prediction"], body["score"]) == (8, pytest.approx(0.5625 / 0.875))


async def test_predict_stores_null_when_missing_values_are_allowed(
    open_client: OpenClient, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    write_squares(tmp_path, "squares", "1", ["no", "yes"], missing_values="allowed")

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        body = await predict(client, features=[1.5, None])

    assert body["probabilities"] == pytest.approx({"no": 0.9, "yes": 0.1})
    assert await connection.fetchval("SELECT features FROM prediction_log") == '{"f0": 1.5, "f1": null}'


async def test_predict_moves_the_contracts_metrics_when_rows_are_answered(client: httpx2.AsyncClient) -> None:
    rows = make_rows(40)
    before = await scrape(client)

    predictions = (await predict(client, instances=rows))["predictions"]

    after = await scrape(client)
    version = {"model": "car-loan", "model_version": "1"}

    def moved(name: str, **labels: str) -> float:
        return pick(after, name, **labels) - pick(before, name, **labels)

    for name in ("0", "1"):
        answered = [row for row in predictions if str(row["prediction"]) == name]
        assert answered
        assert moved("predictions_total", **version, **{"class": name}) == len(answered)
    scores = [row["score"] for row in predictions]
    for edge in np.arange(1, 21) / 20:
        expected = sum(score <= edge for score in scores)
        assert moved("prediction_score_distribution_bucket", **version, le=str(float(edge))) == expected
    assert moved("prediction_score_distribution_count", **version) == 40
    assert moved("prediction_score_distribution_sum", **version) == pytest.approx(sum(scores))
    assert moved("http_requests_total", method="POST", route="/predict", status="200") == 1
    assert moved("http_request_duration_seconds_count", method="POST", route="/predict") == 1


async def test_predict_leaves_prediction_metrics_alone_when_refused(client: httpx2.AsyncClient) -> None:
    before = await scrape(client)

    await client.post("/predict", json={"features": [1]})

    after = await scrape(client)
    labels = {"method": "POST", "route": "/predict", "status": "422"}
    assert pick(after, "http_requests_total", **labels) - pick(before, "http_requests_total", **labels) == 1
    for name, values in after.items():
        if name[0].startswith(("predictions_total", "prediction_score_distribution")) and "_created" not in name[0]:
            assert values == before.get(name, 0)


class WatchedHeaders(list[tuple[bytes, bytes]]):
    """Headers that note which threads look at them."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        super().__init__(headers)
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        self.threads.add(threading.get_ident())
        return super().__iter__()


@pytest.mark.parametrize(("rows", "leaves_the_loop"), [(1, False), (5000, True)])
async def test_a_body_that_takes_long_to_read_is_read_in_a_thread(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, leaves_the_loop: bool
) -> None:
    for name, value in {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    body = msgspec.json.encode({"instances": [[1, 2, 3, 4, 5]] * rows})
    headers = WatchedHeaders([(b"content-type", b"application/json")])
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "client": None}
    async with LifespanManager(main, startup_timeout=60) as manager:
        await manager.app({**scope, "headers": headers}, receive, send)

    assert sent[0]["status"] == 200
    assert (headers.threads != {threading.get_ident()}) == leaves_the_loop
