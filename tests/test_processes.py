"""Real server processes: their start, their end, and what is left of the rows that they have answered."""

import asyncio
import os
import signal
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx2
import pytest

from app.database.embedded import run_embedded_server
from app.database.migrate import upgrade_schema
from tests.conftest import with_database
from tests.support.load import Answers, find_lost, load
from tests.support.processes import Server, find_free_port, wait_until

LEVELS = pytest.mark.parametrize("durability", ["fsync", "os", "database"])


@LEVELS
async def test_sigterm_under_load_loses_no_answered_row(server: Server, database_url: str, durability: str) -> None:
    server.environment["DURABILITY"] = durability
    await server.start()

    async with load(server.url) as answers:
        await wait_for_promises(answers, 500)
        server.send_signal(signal.SIGTERM)
        status = await server.wait()

    assert status == -signal.SIGTERM
    assert await find_lost(database_url, answers) == []
    assert set(answers.seen) <= {"200", "ConnectError", "ReadError", "RemoteProtocolError"}, answers.seen


async def test_sigterm_makes_not_ready_before_the_socket_closes(server: Server) -> None:
    await server.start()
    before = datetime.now(UTC)

    server.send_signal(signal.SIGTERM)

    async with httpx2.AsyncClient(base_url=server.url) as client:
        answer = await wait_until(lambda: fetch_not_ready(client))
        predicted = await client.post("/predict", json={"features": [1, 2, 3, 4, 5]})
    [reason] = answer.json()["reasons"]
    assert (reason["code"], reason["detail"]) == ("stopping", "the server is shutting down")
    assert before <= datetime.fromisoformat(reason["since"]) <= datetime.now(UTC)
    assert predicted.status_code == 200
    assert await server.wait() == -signal.SIGTERM


@LEVELS
async def test_sigkill_under_load_loses_no_answered_row(server: Server, database_url: str, durability: str) -> None:
    server.environment["DURABILITY"] = durability
    await server.start()

    async with load(server.url) as answers:
        for expected in (300, 600, 900):
            await wait_for_promises(answers, expected)
            await server.kill()
            await server.start()
        await wait_for_promises(answers, 1200)

    await wait_until(lambda: has_lost_nothing(database_url, answers))
    assert "500" not in answers.seen


async def test_four_processes_start_at_once_on_an_empty_database(empty_database_url: str, tmp_path: Path) -> None:
    servers = [
        Server({"DATABASE_URL": empty_database_url, "DATA_DIR": str(tmp_path / str(replica))}) for replica in range(4)
    ]

    try:
        await asyncio.gather(*(server.start() for server in servers))
    finally:
        await asyncio.gather(*(server.kill() for server in servers))


async def test_embedded_server_is_stopped_with_the_process_and_reused(open_path: Path) -> None:
    server = Server({"DATABASE_URL": "", "DATA_DIR": str(open_path / "data")})
    await server.start()
    try:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            first = (await client.post("/predict", json={"features": [1, 2, 3, 4, 5]})).json()
        server.send_signal(signal.SIGTERM)
        await server.wait()

        left = list(open_path.rglob("postmaster.pid"))
        await server.start()

        assert left == []
        async with httpx2.AsyncClient(base_url=server.url) as client:
            found = await client.get(f"/predictions/{first['prediction_id']}")
        assert found.json()["score"] == first["score"]
    finally:
        server.send_signal(signal.SIGTERM)
        await server.wait()


async def test_a_crash_of_postgresql_is_answered_503_at_level_database(open_path: Path) -> None:
    server = Server({"DATA_DIR": str(open_path / "data"), "DURABILITY": "database"})
    try:
        async with run_embedded_server(open_path / "postgres") as url:
            server.environment["DATABASE_URL"] = url
            await server.start()
            async with load(server.url) as answers:
                await wait_for_promises(answers, 200)
                await kill_postgres(url)
                await wait_until(lambda: has_seen(answers.seen, "503"))
                not_ready = await server.is_ready()
        async with run_embedded_server(open_path / "postgres") as url:
            await wait_until(server.is_ready)
            async with httpx2.AsyncClient(base_url=server.url) as client:
                after = await client.post("/predict", json={"features": [1, 2, 3, 4, 5]})
            lost = await find_lost(url, answers)
    finally:
        await server.kill()

    assert not not_ready
    assert after.status_code == 200
    assert lost == []
    assert set(answers.seen) <= {"200", "503"}, answers.seen


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("F1_INTERVAL_SECONDS", "often", "F1_INTERVAL_SECONDS is 'often', allowed is a number of seconds"),
        ("DATABASE_URL", "mysql://u:secret@h/d", "DATABASE_URL is not a PostgreSQL URL, allowed is postgresql://"),
        ("MODEL_DIR", "/nowhere", "MODEL_DIR is '/nowhere', which has no <name>/<version>/model.onnx"),
    ],
)
async def test_start_with_a_wrong_setting_ends_in_one_line(server: Server, name: str, value: str, said: str) -> None:
    server.environment[name] = value

    await server.start(wait=False)
    status = await server.wait()

    assert status == 3
    assert said in server.log.decode()
    assert "Traceback" not in server.log.decode()
    assert "secret" not in server.log.decode()


async def test_start_with_a_wrong_password_ends_in_one_line(server: Server, database_url: str) -> None:
    password = database_url.partition("://")[2].partition(":")[2].partition("@")[0]
    server.environment["DATABASE_URL"] = database_url.replace(password, "geheim")

    await server.start(wait=False)
    status = await server.wait()

    assert status == 3
    assert "error: cannot connect to PostgreSQL at" in server.log.decode()
    assert "password authentication failed" in server.log.decode()
    assert "Traceback" not in server.log.decode()
    assert "geheim" not in server.log.decode()


async def test_start_with_nobody_at_the_url_ends_in_one_line(server: Server) -> None:
    port = find_free_port()
    server.environment["DATABASE_URL"] = f"postgresql://user:geheim@127.0.0.1:{port}/mlops"
    server.environment["DURABILITY"] = "database"

    await server.start(wait=False)
    status = await server.wait()

    assert status == 3
    assert f"error: cannot connect to PostgreSQL at 127.0.0.1:{port}/mlops (DATABASE_URL):" in server.log.decode()
    assert "Traceback" not in server.log.decode()


async def test_start_with_a_missing_database_ends_in_one_line(server: Server, database_url: str) -> None:
    server.environment["DATABASE_URL"] = with_database(database_url, "elsewhere")

    await server.start(wait=False)
    status = await server.wait()

    assert status == 3
    assert 'database "elsewhere" does not exist' in server.log.decode()
    assert "Traceback" not in server.log.decode()


async def test_start_with_a_postgresql_that_is_too_old_ends_in_one_line(server: Server) -> None:
    async with await asyncio.start_server(pretend_to_be_postgresql_14, "127.0.0.1", 0) as old:
        port = old.sockets[0].getsockname()[1]
        server.environment["DATABASE_URL"] = f"postgresql://user:geheim@127.0.0.1:{port}/mlops?sslmode=disable"

        await server.start(wait=False)
        status = await server.wait()

    assert status == 3
    assert f"error: PostgreSQL at 127.0.0.1:{port}/mlops is version 14, which is too old" in server.log.decode()
    assert "Traceback" not in server.log.decode()


async def test_start_without_migration_is_not_ready_until_somebody_migrates(
    empty_database_url: str, tmp_path: Path
) -> None:
    server = Server(
        {
            "DATABASE_URL": empty_database_url,
            "DATA_DIR": str(tmp_path / "data"),
            "MIGRATE_ON_START": "false",
            "DURABILITY": "database",
        }
    )
    try:
        await server.start(wait=False)
        async with httpx2.AsyncClient(base_url=server.url) as client:
            answer = await wait_until(lambda: fetch_not_ready(client))
            refused = await client.post("/predict", json={"features": [1, 2, 3, 4, 5]})
            await upgrade_schema(empty_database_url)
            await wait_until(server.is_ready)
            accepted = await client.post("/predict", json={"features": [1, 2, 3, 4, 5]})
    finally:
        await server.kill()

    assert "schema_behind" in {reason["code"] for reason in answer.json()["reasons"]}
    assert refused.status_code == 503
    assert accepted.status_code == 200


async def has_lost_nothing(url: str, answers: Answers) -> bool:
    return await find_lost(url, answers) == []


async def wait_for_promises(answers: Answers, count: int) -> None:
    """Wait until so many rows are answered; the server may have started beside other servers and their clients."""

    async def has_promised() -> bool:
        return len(answers.promised) >= count

    await wait_until(has_promised, what=lambda: f"{count} rows are answered: {answers.seen}")


async def has_seen(seen: dict[str, int], status: str) -> bool:
    return seen.get(status, 0) > 0


async def fetch_not_ready(client: httpx2.AsyncClient) -> httpx2.Response | None:
    try:
        answer = await client.get("/health/ready")
    except httpx2.TransportError:
        return None
    return answer if answer.status_code == 503 else None


async def kill_postgres(url: str) -> None:
    """Shut PostgreSQL down at once, as a crash would: every connection breaks."""
    connection = await asyncpg.connect(url)
    directory = await connection.fetchval("SHOW data_directory")
    await connection.close()
    pid = int((Path(directory) / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)


async def pretend_to_be_postgresql_14(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak as much of PostgreSQL's protocol as a connection needs: no release that old can be installed here."""

    def message(kind: bytes, body: bytes) -> bytes:
        return kind + (len(body) + 4).to_bytes(4) + body

    await reader.readexactly(int.from_bytes(await reader.readexactly(4)) - 4)
    writer.write(message(b"R", bytes(4)) + message(b"S", b"server_version\x0014.9\x00"))
    writer.write(message(b"S", b"client_encoding\x00UTF8\x00") + message(b"Z", b"I"))
    await writer.drain()
    await reader.readexactly(5)  # the client's goodbye
    writer.close()
