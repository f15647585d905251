"""Versions that come and go while real server processes answer requests, and the endpoints for it."""

import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import onnx
import pytest

from app.database.queries import Connection
from tests.conftest import OpenClient
from tests.support.answers import FEATURES, predict, read_problem
from tests.support.load import Answers, find_lost, load
from tests.support.onnx_models import build_echo, write_model
from tests.support.processes import ROOT, WAIT_SECONDS, Server, wait_until
from tests.support.records import register_demo

DEMO_FILE = ROOT / "demo" / "models" / "car-loan" / "1" / "model.onnx"


def build_version(version: str) -> bytes:
    """The demo model in a file of its own for each version."""
    model = onnx.load(DEMO_FILE)
    model.metadata_props.add(key="note", value=version)
    return bytes(model.SerializeToString())


def put(models: Path, version: str, content: bytes | None = None) -> Path:
    """Put a version of the demo model into the repository as one should: under another name first."""
    draft = write_model(models, content or build_version(version), "car-loan", f".{version}").parent
    return draft.rename(draft.with_name(version)) / "model.onnx"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A repository with version 1 of the demo model."""
    put(tmp_path / "models", "1")
    return tmp_path / "models"


@pytest.fixture
async def start_server(
    database_url: str, tmp_path: Path, models: Path
) -> AsyncIterator[Callable[[str], Awaitable[Server]]]:
    """Starts a replica by its name, with a directory of its own, by the command for production."""
    servers = []

    async def start(name: str) -> Server:
        environment = {"DATABASE_URL": database_url, "DATA_DIR": str(tmp_path / name), "MODEL_DIR": str(models)}
        server = Server(environment)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.kill()


async def get_json(server: Server, path: str) -> Any:
    async with httpx2.AsyncClient(base_url=server.url) as client:
        return (await client.get(path)).json()


async def post(server: Server, path: str, **body: object) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=server.url, timeout=WAIT_SECONDS) as client:
        return await client.post(path, json=body)


async def wait_for_default(server: Server, version: str) -> None:
    async def has_default() -> bool:
        listed = (await get_json(server, "/models"))["models"]
        return [one["version"] for one in listed if one["default"]] == [version]

    await wait_until(has_default, what=lambda: f"{version} is the default: {server.log.decode()}")


async def wait_for_reasons(server: Server, *codes: str) -> None:
    async def has_reasons() -> bool:
        return [reason["code"] for reason in (await get_json(server, "/health"))["reasons"]] == list(codes)

    await wait_until(has_reasons, what=lambda: f"/health shows {codes}: {server.log.decode()}")


async def wait_for_answers(answers: Answers, more: int = 200) -> None:
    """Wait until so many requests that were sent from now on are answered."""
    goal = answers.seen.total() + more

    async def has_answers() -> bool:
        return answers.seen.total() >= goal

    await wait_until(has_answers)


def count_versions(answers: Answers) -> Counter[str]:
    return Counter(promise.model_version for promise in answers.promised.values())


StartServer = Callable[[str], Awaitable[Server]]


async def test_new_version_goes_live_under_load_without_an_error(
    start_server: StartServer, database_url: str, models: Path
) -> None:
    server = await start_server("a")

    async with load(server.url) as answers:
        await wait_for_answers(answers)
        before = count_versions(answers)
        put(models, "2")
        await wait_for_default(server, "2")
        await wait_for_answers(answers, 50)  # of clients that had sent theirs before
        switched = count_versions(answers)
        await wait_for_answers(answers)
        after = count_versions(answers)

    await stop(server)
    assert set(answers.seen) == {"200"}
    assert set(before) == {"1"}
    assert after["1"] == switched["1"]
    assert after["2"] > switched["2"]
    assert await find_lost(database_url, answers) == []


async def test_health_tells_that_the_next_start_would_not_know_the_default(
    start_server: StartServer, models: Path
) -> None:
    server = await start_server("a")

    write_model(models, build_echo(), "other")

    async def answers() -> bool:
        return (await post(server, "/predict", features=[1, 0, 0], model="other")).status_code == 200

    await wait_until(answers)
    await wait_for_reasons(server, "default_model_unset")
    shutil.rmtree(models / "other")
    await wait_for_reasons(server)


async def test_health_is_ok_with_several_models_when_the_default_is_set(open_client: OpenClient, models: Path) -> None:
    write_model(models, build_echo(), "other")

    async with open_client(MODEL_DIR=str(models), DEFAULT_MODEL="other") as client:
        health = (await client.get("/health")).json()

    assert health == {"status": "ok", "reasons": []}


async def stop(server: Server) -> None:
    """Stop it, by which all rows come to the database."""
    assert server.process is not None
    server.process.terminate()
    await server.wait()


async def test_nobody_notices_when_versions_come_and_go_under_load(
    start_server: StartServer, database_url: str, models: Path, connection: asyncpg.Connection
) -> None:
    server = await start_server("a")

    async with load(server.url) as answers:
        for version in ("2", "3", "4", "5"):
            put(models, version)
            loaded = await post(server, "/models/car-loan/load")
            assert (loaded.status_code, loaded.json()["version"]) == (200, version)
            await wait_for_answers(answers, 100)
            unloaded = await post(server, "/models/car-loan/unload", version=str(int(version) - 1))
            assert unloaded.status_code == 200
            await wait_for_answers(answers, 100)
        for file in ("3", "4"):
            shutil.rmtree(models / "car-loan" / file)
        put(models, "6", build_version("6")[:-1000])
        write_model(models, build_echo(3), "other", "1")
        await wait_for_reasons(server, "default_model_unset", "model_not_loadable")

    await stop(server)
    assert set(answers.seen) == {"200"}
    assert set(count_versions(answers)) == {"1", "2", "3", "4", "5"}
    assert await find_lost(database_url, answers) == []
    known = await connection.fetch("SELECT name, version FROM model_version ORDER BY name, version")
    assert [tuple(row) for row in known] == [*(("car-loan", version) for version in "12345"), ("other", "1")]


async def test_half_copied_file_is_never_served(start_server: StartServer, models: Path) -> None:
    server = await start_server("a")
    content = build_version("2")

    file = write_model(models, content[: len(content) // 2], "car-loan", "2")
    await wait_for_reasons(server, "model_not_loadable")
    refused = await get_json(server, "/models/car-loan/versions/2")
    listed = await get_json(server, "/models")
    file.write_bytes(content)
    await wait_for_default(server, "2")

    assert (refused["state"], refused["trouble"]["code"]) == ("refused", "model_not_loadable")
    assert listed["not_serving"] == [refused]
    await wait_for_reasons(server)


async def test_replicas_agree_when_a_version_comes_and_pin_for_themselves(
    start_server: StartServer, database_url: str, models: Path
) -> None:
    first, second = await start_server("a"), await start_server("b")

    async with load(first.url, clients=4) as one, load(second.url, clients=4) as other:
        put(models, "2")
        await wait_for_default(first, "2")
        await wait_for_default(second, "2")
        pinned = await post(second, "/models/car-loan/pin", version="1")
        await wait_for_answers(one)
        await wait_for_answers(other)

    assert pinned.json() == {"name": "car-loan", "pinned": "1", "default_version": "1"}
    assert (await post(first, "/predict", features=FEATURES)).json()["model_version"] == "2"
    assert (await post(second, "/predict", features=FEATURES)).json()["model_version"] == "1"
    await stop(first)
    await stop(second)
    assert set(one.seen) == set(other.seen) == {"200"}
    assert await find_lost(database_url, one) == await find_lost(database_url, other) == []


async def test_pin_holds_when_the_process_was_killed(start_server: StartServer, models: Path) -> None:
    put(models, "2")
    server = await start_server("a")
    await post(server, "/models/car-loan/pin", version=1)
    await server.kill()

    await server.start()

    answer = (await post(server, "/predict", features=FEATURES)).json()
    assert answer["model_version"] == "1"
    assert (await get_json(server, "/models"))["pins"] == {"car-loan": "1"}


async def test_version_with_other_classes_is_refused_while_the_old_one_serves(
    start_server: StartServer, models: Path, connection: Connection
) -> None:
    await register_demo(connection)
    await connection.execute("""INSERT INTO model_version (name, version, sha256, classes, inputs)
        VALUES ('car-loan', '2', '', '["no", "yes"]', '[]')""")
    server = await start_server("a")

    put(models, "2")
    await wait_for_reasons(server, "model_conflict")
    loaded = await post(server, "/models/car-loan/load", version="2")

    assert loaded.status_code == 409
    assert "has been served with other classes" in loaded.json()["detail"]
    assert (await post(server, "/predict", features=FEATURES)).json()["model_version"] == "1"
    assert server.log.count(b"has been served with other classes: give this file a new version") == 1


async def test_replaced_file_is_told_and_not_served(start_server: StartServer, models: Path) -> None:
    server = await start_server("a")
    before = await get_json(server, "/models/car-loan/versions/1")

    (models / "car-loan" / "1" / "model.onnx").write_bytes(build_version("other bytes"))
    await wait_for_reasons(server, "model_replaced")
    after = await get_json(server, "/models/car-loan/versions/1")

    assert after["trouble"]["code"] == "model_replaced"
    assert {**after, "trouble": None} == before


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/models/car-loan/load", b"", 200),
        ("/models/car-loan/load", b"{}", 200),
        ("/models/car-loan/load", b'{"version": 1}', 200),
        ("/models/car-loan/load", b'{"version": "2"}', 404),
        ("/models/other/load", b"", 404),
        ("/models/..%2f..%2fetc/load", b"", 404),
        ("/models/car-loan/load", b'{"version": "../1"}', 404),
        ("/models/car-loan/load", b'{"versions": "1"}', 422),
        ("/models/car-loan/load", b'{"version": ', 400),
        ("/models/car-loan/load", b" " * 2000, 413),
        ("/models/car-loan/unload", b'{"version": "1"}', 409),
        ("/models/car-loan/unload", b'{"version": "2"}', 404),
        ("/models/car-loan/unload", b"{}", 422),
        ("/models/car-loan/pin", b'{"version": "1"}', 200),
        ("/models/car-loan/pin", b'{"version": null}', 200),
        ("/models/car-loan/pin", b'{"version": "2"}', 404),
        ("/models/other/pin", b'{"version": null}', 404),
        ("/models/car-loan/pin", b"", 400),
        ("/models/car-loan/pin", b"{}", 422),
    ],
)
async def test_operator_is_told_what_came_of_it(
    client: httpx2.AsyncClient, path: str, body: bytes, status: int
) -> None:
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})

    assert answer.status_code == status
    if status != 200:
        read_problem(answer)
    assert (await predict(client))["model_version"] == "1"


async def test_bad_version_is_told_when_the_others_have_started(open_client: OpenClient, models: Path) -> None:
    put(models, "2", b"not a model")

    async with open_client(MODEL_DIR=str(models)) as client:
        answer = await predict(client)
        health = (await client.get("/health")).json()
        refused = await client.post("/models/car-loan/load")

    assert answer["model_version"] == "1"
    assert [reason["code"] for reason in health["reasons"]] == ["model_not_loadable"]
    assert health["reasons"][0]["detail"].startswith("car-loan version 2: onnxruntime cannot load it")
    assert refused.status_code == 422
    read_problem(refused)


async def test_unloaded_version_is_shown_as_such(open_client: OpenClient, models: Path) -> None:
    put(models, "2")

    async with open_client(MODEL_DIR=str(models)) as client:
        unloaded = await client.post("/models/car-loan/unload", json={"version": 2})
        shown = (await client.get("/models/car-loan/versions/2")).json()
        answer = await client.post("/predict", json={"features": FEATURES, "version": "2"})
        health = (await client.get("/health")).json()
        await client.post("/models/car-loan/load", json={"version": 2})
        again = (await client.get("/models/car-loan/versions/2")).json()

    assert unloaded.json() == {"name": "car-loan", "version": "2", "state": "unloaded"}
    assert (shown["state"], shown["trouble"]) == ("unloaded", None)
    assert answer.status_code == 404
    assert health == {"status": "ok", "reasons": []}
    assert (again["state"], again["default"]) == ("serving", True)


async def test_version_is_served_before_it_is_registered_when_the_database_is_stuck(
    start_server: StartServer, models: Path, connection: asyncpg.Connection
) -> None:
    server = await start_server("a")

    async with connection.transaction():
        await connection.execute("LOCK TABLE model_version IN ACCESS EXCLUSIVE MODE")
        put(models, "2")
        await wait_for_default(server, "2")
        answer = await post(server, "/predict", features=FEATURES)
        registered = await connection.fetchval("SELECT count(*) FROM model_version")

    async def is_registered() -> bool:
        return bool(await connection.fetchval("SELECT count(*) = 2 FROM model_version"))

    assert answer.json()["model_version"] == "2"
    assert registered == 1
    await wait_until(is_registered)
