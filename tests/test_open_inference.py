"""The Open Inference Protocol over HTTP: inference as /predict answers and logs it, and everything beside it."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import numpy as np
import pytest

from tests.conftest import OpenClient
from tests.support.answers import FEATURES, NAMES, pick, predict, scrape
from tests.support.onnx_models import (
    build_dividing,
    build_echo,
    build_fragile,
    build_imputing,
    convert,
    make_rows,
    train,
    write_model,
)
from tests.support.open_inference import HEADER_LENGTH, INFER, make_body, read_error


async def infer(client: httpx2.AsyncClient, path: str = INFER, **members: Any) -> Any:
    """Send a valid request and return the answer's JSON."""
    answer = await client.post(path, json=make_body(**members))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def read_outputs(answer: Any) -> dict[str, Any]:
    """Return each output as nested lists."""
    return {one["name"]: np.reshape(one["data"], one["shape"]).tolist() for one in answer["outputs"]}


async def read_metadata(client: httpx2.AsyncClient, path: str) -> Any:
    answer = await client.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_inference_answers_what_predict_answers(client: httpx2.AsyncClient) -> None:
    rows = [list(FEATURES), [60000.0, 0.2, 24, 12.5, 30.0]]
    expected = (await predict(client, instances=rows))["predictions"]

    answer = await infer(client, rows=rows, id="7")

    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("car-loan", "1", "7")
    assert read_outputs(answer) == {
        "label": [one["prediction"] for one in expected],
        "probabilities": [list(one["probabilities"].values()) for one in expected],
    }


async def test_rows_are_logged_with_features_by_name(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    rows = [list(FEATURES), [60000.1, 0.2, 24, 12.5, 30.0]]
    body = make_body(rows, parameters={"external_ids": '["order-1", null]'})

    answer = await client.post(INFER, json=body, headers={"x-request-id": "mine"})

    stored = await connection.fetch("SELECT * FROM prediction_log ORDER BY prediction_id")
    assert [str(row["prediction_id"]) for row in stored] == json.loads(answer.json()["parameters"]["prediction_ids"])
    assert [json.loads(row["features"]) for row in stored] == [dict(zip(NAMES, row, strict=True)) for row in rows]
    assert [row["predicted_class"] for row in stored] == [str(one) for one in read_outputs(answer.json())["label"]]
    assert [row["probabilities"] for row in stored] == read_outputs(answer.json())["probabilities"]
    assert [row["external_id"] for row in stored] == ["order-1", None]
    assert {row["request_id"] for row in stored} == {"mine"}


async def test_one_rows_id_is_also_in_a_header_and_can_be_labelled(client: httpx2.AsyncClient) -> None:
    answer = await client.post(INFER, json=make_body(parameters={"external_id": "order-1"}))

    prediction_id = answer.headers["x-prediction-id"]
    assert json.loads(answer.json()["parameters"]["prediction_ids"]) == [prediction_id]
    labelled = await client.post("/labels", json={"external_id": "order-1", "label": 0})
    assert labelled.json()["new"] == 1
    assert (await client.get(f"/predictions/{prediction_id}")).json()["label"]["label"] == 0


async def test_many_rows_have_no_id_header(client: httpx2.AsyncClient) -> None:
    answer = await client.post(INFER, json=make_body([FEATURES, FEATURES]))

    assert "x-prediction-id" not in answer.headers


async def test_binary_tensors_go_in_and_out(client: httpx2.AsyncClient) -> None:
    features = np.array([FEATURES, FEATURES], dtype="<f4")
    head = make_body(features.tolist(), parameters={"binary_data_output": True})
    del head["inputs"][0]["data"]
    head["inputs"][0]["parameters"] = {"binary_data_size": features.nbytes}
    json_part = json.dumps(head).encode()

    answer = await client.post(
        INFER, content=json_part + features.tobytes(), headers={HEADER_LENGTH: str(len(json_part))}
    )

    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers[HEADER_LENGTH])
    outputs = json.loads(answer.content[:size])["outputs"]
    assert [one["parameters"]["binary_data_size"] for one in outputs] == [16, 16]
    probabilities = np.frombuffer(answer.content[size + 16 :], dtype="<f4").reshape(2, 2)
    expected = (await predict(client))["probabilities"]
    assert probabilities.tolist() == [list(expected.values())] * 2
    assert np.frombuffer(answer.content[size : size + 16], dtype="<i8").tolist() == [0, 0]


async def test_a_body_that_is_all_tensor_is_the_one_input(client: httpx2.AsyncClient) -> None:
    features = np.array([FEATURES, FEATURES], dtype="<f4")

    answer = await client.post(INFER, content=features.tobytes(), headers={HEADER_LENGTH: "0"})

    size = int(answer.headers[HEADER_LENGTH])
    assert [one["shape"] for one in json.loads(answer.content[:size])["outputs"]] == [[2], [2, 2]]


@pytest.mark.parametrize("datatype", ["FP64", "INT64", "INT8", "UINT16"])
async def test_numbers_of_another_datatype_are_taken_for_floats(client: httpx2.AsyncClient, datatype: str) -> None:
    rows = [[1, 2, 3, 4, 5]]
    body = make_body(rows)
    body["inputs"][0]["datatype"] = datatype

    answer = await client.post(INFER, json=body)

    assert read_outputs(answer.json()) == read_outputs(await infer(client, rows=rows))


@pytest.mark.parametrize("content_type", [None, "application/octet-stream", "text/plain"])
async def test_content_type_is_not_looked_at(client: httpx2.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}

    answer = await client.post(INFER, content=json.dumps(make_body()).encode(), headers=headers)

    assert answer.status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_bodies_are_read(client: httpx2.AsyncClient, coding: str) -> None:
    body = json.dumps(make_body()).encode()
    compressed = gzip.compress(body) if coding == "gzip" else zlib.compress(body)

    answer = await client.post(INFER, content=compressed, headers={"content-encoding": coding})

    assert read_outputs(answer.json()) == read_outputs(await infer(client))


async def test_large_bodies_are_answered(client: httpx2.AsyncClient) -> None:
    answer = await infer(client, rows=[FEATURES] * 5000)

    assert answer["outputs"][1]["shape"] == [5000, 2]


async def test_outputs_are_those_asked_for(client: httpx2.AsyncClient) -> None:
    answer = await infer(client, outputs=[{"name": "probabilities"}])

    assert [one["name"] for one in answer["outputs"]] == ["probabilities"]


@pytest.mark.parametrize("zipmap", [False, True], ids=["tensor", "zipmap"])
async def test_text_classes_are_bytes(open_client: OpenClient, tmp_path: Path, zipmap: bool) -> None:
    classes = ("ash", "beech", "cherry")
    write_model(tmp_path / "models", convert("forest", classes, zipmap=zipmap))
    rows = make_rows(5)

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        answer = await infer(client, "/v2/models/model/infer", rows=rows.tolist())

    label, probabilities = answer["outputs"]
    assert (label["datatype"], label["shape"]) == ("BYTES", [5])
    assert label["data"] == train("forest", classes).predict(rows).tolist()
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP32", [5, 3])
    expected = train("forest", classes).predict_proba(rows)
    assert np.reshape(probabilities["data"], (5, 3)) == pytest.approx(expected, abs=1e-5)


async def test_a_graph_without_label_is_given_one(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_echo(3))

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        described = await read_metadata(client, "/v2/models/model")
        answer = await infer(client, "/v2/models/model/infer", name="x", rows=[[0.25, 0.5, 0.25]])

    assert [one["name"] for one in described["outputs"]] == ["p", "label"]
    assert read_outputs(answer) == {"p": [[0.25, 0.5, 0.25]], "label": [1]}


async def test_missing_values_are_null_or_nan_where_the_model_allows_them(
    open_client: OpenClient, tmp_path: Path, connection: asyncpg.Connection
) -> None:
    write_model(tmp_path / "models", build_imputing(missing_values="allowed"))
    body = make_body([[1.0, 0.5, 0.25]], name="x", outputs=[{"name": "p"}])
    body["inputs"][0]["data"][0] = None
    raw = np.array([[np.nan, 0.5, 0.25]], dtype="<f4").tobytes()

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        from_json = await client.post("/v2/models/model/infer", json=body)
        from_bytes = await client.post("/v2/models/model/infer", content=raw, headers={HEADER_LENGTH: "0"})

    assert read_outputs(from_json.json()) == {"p": [[0.25, 0.5, 0.25]]}
    assert from_bytes.status_code == 200
    stored = await connection.fetch("SELECT features FROM prediction_log")
    assert [json.loads(row["features"]) for row in stored] == [{"f0": None, "f1": 0.5, "f2": 0.25}] * 2


async def test_versions_have_urls_of_their_own(open_client: OpenClient, tmp_path: Path) -> None:
    for version in ("9", "10"):
        write_model(tmp_path / "models", build_echo(2), "echo", version)

    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        default = await infer(client, "/v2/models/echo/infer", name="x", rows=[[0.5, 0.5]])
        old = await infer(client, "/v2/models/echo/versions/9/infer", name="x", rows=[[0.5, 0.5]])
        described = await read_metadata(client, "/v2/models/echo/versions/9")
        unknown = await client.post("/v2/models/echo/versions/8/infer", json=make_body([[0.5, 0.5]], "x"))

    assert (default["model_version"], old["model_version"]) == ("10", "9")
    assert described["versions"] == ["9", "10"]
    assert unknown.status_code == 404


async def test_what_the_model_cannot_answer_is_400(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_fragile(), "fragile")
    write_model(tmp_path / "models", build_dividing(), "dividing")

    async with open_client(MODEL_DIR=str(tmp_path / "models"), DEFAULT_MODEL="fragile") as client:
        failing = await client.post("/v2/models/fragile/infer", json=make_body([[5, 0]], "x"))
        not_finite = await client.post("/v2/models/dividing/infer", json=make_body([[1, 1], [1, -1]], "x"))

    assert (failing.status_code, not_finite.status_code) == (400, 400)
    assert "the model fails on this input" in read_error(failing)
    assert "/rows/1" in read_error(not_finite)


async def test_server_says_what_it_is(client: httpx2.AsyncClient) -> None:
    answer = await read_metadata(client, "/v2")

    assert set(answer) == {"name", "version", "extensions"}
    assert answer["name"] == "scorekeeper"
    assert "binary_tensor_data" in answer["extensions"]


async def test_health_is_ready_while_inference_is(client: httpx2.AsyncClient) -> None:
    assert await read_metadata(client, "/v2/health/live") == {"live": True}
    assert await read_metadata(client, "/v2/health/ready") == {"ready": True}
    assert await read_metadata(client, "/v2/models/car-loan/ready") == {"name": "car-loan", "ready": True}
    assert await read_metadata(client, "/v2/models/car-loan/versions/1/ready") == {"name": "car-loan", "ready": True}


async def test_not_ready_and_refused_rows_are_503_with_retry_after(
    client: httpx2.AsyncClient, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE prediction_log RENAME TO gone")

    refused = await client.post(INFER, json=make_body())

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "prediction_log" not in read_error(refused)
    for path, body in (("health", {"ready": False}), ("models/car-loan", {"name": "car-loan", "ready": False})):
        answer = await client.get(f"/v2/{path}/ready")
        assert (answer.status_code, answer.json(), answer.headers["retry-after"]) == (503, body, "1")


async def test_metadata_and_config_describe_inputs_and_outputs(client: httpx2.AsyncClient) -> None:
    described = await read_metadata(client, "/v2/models/car-loan")
    config = await read_metadata(client, "/v2/models/car-loan/config")

    assert await read_metadata(client, "/v2/models") == {"models": ["car-loan"]}
    assert described == {
        "name": "car-loan",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 5]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    assert config["max_batch_size"] == 10_000
    assert config["input"] == [{"name": "features", "data_type": "TYPE_FP32", "dims": [5]}]
    assert config["output"][0] == {"name": "label", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}}


@pytest.mark.parametrize(
    "path", ["/v2/models/stats", "/v2/models/car-loan/stats", "/v2/models/car-loan/versions/1/stats"]
)
async def test_statistics_count_rows_runs_and_requests(client: httpx2.AsyncClient, path: str) -> None:
    (before,) = (await read_metadata(client, path))["model_stats"]
    await infer(client, rows=[FEATURES] * 3)
    await client.post(INFER, json={})

    (after,) = (await read_metadata(client, path))["model_stats"]

    assert after["inference_count"] - before["inference_count"] == 3
    assert after["execution_count"] - before["execution_count"] == 1
    for name in ("success", "fail", "compute_infer"):
        was, now = before["inference_stats"][name], after["inference_stats"][name]
        assert now["count"] - was["count"] == 1
        assert now["ns"] > was["ns"]


async def test_metrics_count_routes_as_templates_and_predictions(client: httpx2.AsyncClient) -> None:
    route = {"method": "POST", "route": "/v2/models/{model}/infer"}
    predicted = {"model": "car-loan", "model_version": "1", "class": "0"}
    before = await scrape(client)
    await infer(client)
    await client.post("/v2/models/made-up/infer", json=make_body())

    after = await scrape(client)

    for status, count in (("200", 1), ("404", 1)):
        counted = [pick(samples, "http_requests_total", **route, status=status) for samples in (before, after)]
        assert counted[1] - counted[0] == count
    rows = [pick(samples, "predictions_total", **predicted) for samples in (before, after)]
    assert rows[1] - rows[0] == 1
    assert "made-up" not in str(after.keys())


async def test_repository_is_listed_loaded_and_unloaded(open_client: OpenClient, tmp_path: Path) -> None:
    write_model(tmp_path / "models", build_echo(2), "kept")
    write_model(tmp_path / "models", build_echo(2), "other")
    write_model(tmp_path / "models", b"garbage", "other", "2")
    body = make_body([[0.5, 0.5]], "x")

    async with open_client(MODEL_DIR=str(tmp_path / "models"), DEFAULT_MODEL="kept") as client:
        index = (await client.post("/v2/repository/index")).json()
        unloaded = await client.post("/v2/repository/models/other/unload", json={"parameters": {}})
        gone = await client.post("/v2/models/other/infer", json=body)
        ready = (await client.post("/v2/repository/index", json={"ready": True})).json()
        kept = await client.post("/v2/repository/models/kept/unload")
        (tmp_path / "models" / "other" / "2" / "model.onnx").unlink()
        loaded = await client.post("/v2/repository/models/other/load", json={})
        again = await client.post("/v2/repository/models/other/load")
        back = await client.post("/v2/models/other/infer", json=body)

    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("kept", "1", "READY"),
        ("other", "1", "READY"),
        ("other", "2", "UNAVAILABLE"),
    ]
    assert "onnxruntime" in index[2]["reason"]
    assert (unloaded.status_code, gone.status_code) == (200, 404)
    assert [one["name"] for one in ready] == ["kept"]
    assert kept.status_code == 409
    assert "default" in read_error(kept)
    assert (loaded.status_code, again.status_code, back.status_code) == (200, 200, 200)
