"""`scorekeeper serve`: what its protocol does with clients that are slow, large, many, or wrong."""

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from app.server.deadlines import Limits
from tests.support.connections import BODY, HEAD, Answer, Client, Process, connect, run_process
from tests.support.processes import ROOT, wait_until

LIMITS = Limits(
    head_seconds=0.8,
    body_seconds=2.0,
    progress_seconds=0.8,
    progress_bytes=4096,
    keep_alive_seconds=2.0,
    write_seconds=0.8,
    linger_seconds=0.5,
    graceful_seconds=1.0,
    connections=20,
    reserved_connections=5,
    pipelined=8,
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server that the tests of this module share; none of them may leave a connection open."""
    with run_process(tmp_path_factory.mktemp("serve"), LIMITS) as process:
        asyncio.run(process.wait_until_ready())
        yield process


@pytest.fixture
async def port(shared: Process) -> int:
    """The port of the shared server, once the connections of the test before are gone from it."""
    await wait_until(shared.is_ready)
    return shared.port


def assert_problem(answer: Answer, status: int, detail: str) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.body["status"] == status
    assert answer.body["instance"] == answer.headers["x-request-id"]
    assert detail in answer.body["detail"]


async def test_half_a_head_is_answered_408(port: int) -> None:
    async with connect(port) as client:
        await client.send(HEAD)

        assert_problem(await client.read_answer(), 408, "the head took longer than 0.8 s")
        assert 0.7 < await client.read_end() < 2


async def test_a_trickling_head_is_answered_408(port: int) -> None:
    async with connect(port) as client:
        trickle = asyncio.create_task(send_slowly(client, HEAD + b"X: y\r\n" * 1000, pause=0.05))

        assert_problem(await client.read_answer(), 408, "the head")
        await stop(trickle)


async def test_silence_is_ended_without_an_answer(port: int) -> None:
    async with connect(port) as client:
        assert 0.7 < await client.read_end() < 2


async def test_empty_lines_are_silence(port: int) -> None:
    async with connect(port) as client:
        trickle = asyncio.create_task(send_slowly(client, b"\r\n" * 1000, pause=0.05))

        assert await client.read_end() < 2
        await stop(trickle)


async def test_half_a_body_is_answered_408(port: int) -> None:
    async with connect(port) as client:
        await client.send(HEAD + b"Content-Length: 1000\r\n\r\n" + BODY)

        assert_problem(await client.read_answer(), 408, "the body came slower than 4096 bytes in 0.8 s")
        assert 0.7 < await client.read_end() < 2


async def test_a_trickling_body_is_answered_408(port: int) -> None:
    async with connect(port) as client:
        await client.send(HEAD + b"Content-Length: 1000\r\n\r\n")
        trickle = asyncio.create_task(send_slowly(client, b" " * 1000, pause=0.05))

        assert_problem(await client.read_answer(), 408, "the body came slower")
        await stop(trickle)


async def test_a_body_in_chunks_that_trickle_is_answered_408(port: int) -> None:
    async with connect(port) as client:
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        trickle = asyncio.create_task(send_slowly(client, b"1\r\n \r\n" * 1000, pause=0.05, size=6))

        assert_problem(await client.read_answer(), 408, "the body came slower")
        await stop(trickle)


async def test_a_body_with_progress_is_answered_408_at_its_deadline(port: int) -> None:
    async with connect(port) as client:
        await client.send(HEAD + b"Content-Length: 4000000\r\n\r\n")
        trickle = asyncio.create_task(send_slowly(client, b" " * 4_000_000, pause=0.05, size=2000))

        assert_problem(await client.read_answer(), 408, "the body took longer than 2 s")
        assert 1.9 < time.monotonic() - client.opened_at < 3
        await stop(trickle)


async def test_a_slow_body_with_progress_is_answered_200(port: int) -> None:
    body = b" " * 60_000 + BODY
    async with connect(port) as client:
        await client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(body))
        await send_slowly(client, body, pause=0.1, size=5000)

        answer = await client.read_answer()

    assert time.monotonic() - client.opened_at > LIMITS.progress_seconds
    assert answer.status == 200


@pytest.mark.parametrize(
    ("head", "status", "detail"),
    [
        (HEAD + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431, "more than the 65536 bytes allowed"),
        (HEAD + b"X: " + b"y" * 3_000_000, 431, "more than the 65536 bytes allowed"),
        (HEAD + b"X: y\r\n" * 100 + b"\r\n", 431, "more than the 100 headers allowed"),
        (HEAD + b"X: y\r\n" * 100_000, 431, "more than the 100 headers allowed"),
        (b"GET /" + b"x" * 8192 + b" HTTP/1.1\r\n\r\n", 414, "more than the 8192 bytes allowed"),
        (b"GET /?" + b"x" * 3_000_000, 414, "more than the 8192 bytes allowed"),
        (
            HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "not a valid HTTP/1.1",
        ),
        (
            HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
            "not a valid HTTP/1.1",
        ),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400, "not a valid HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n", 400, "not a valid HTTP/1.1"),
        (b"GET /health/live HTTP/1.1\nHost: x\n\n", 400, "not a valid HTTP/1.1"),
        (HEAD + b"X: y\r\n folded\r\n\r\n", 400, "not a valid HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "not a valid HTTP/1.1"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3;" + b"x" * 3_000_000, 400, "too much framing without content"),
        (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 3_000_000,
            400,
            "too much framing without content",
        ),
    ],
    ids=lambda value: value[-40:].decode("latin1") if isinstance(value, bytes) else None,
)
async def test_a_head_that_is_not_read_is_refused(port: int, head: bytes, status: int, detail: str) -> None:
    async with connect(port) as client:
        client.writer.write(head)

        assert_problem(await client.read_answer(), status, detail)
        await client.read_end()


async def test_a_refusal_under_v2_is_the_open_inference_protocols(port: int) -> None:
    async with connect(port) as client:
        client.writer.write(b"POST /v2/models/m/infer?x HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100 + b"\r\n")

        answer = await client.read_answer()

    assert (answer.status, answer.headers["content-type"]) == (431, "application/json")
    assert answer.body == {"error": "there are more than the 100 headers allowed"}


async def test_headers_at_the_limits_are_read(port: int) -> None:
    large = b"X: " + b"y" * 65_000 + b"\r\n"
    many = b"X: y\r\n" * 99
    async with connect(port) as client:
        for headers in (large, many):
            await client.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
            assert (await client.read_answer()).status == 200


async def test_a_refusal_comes_after_the_answers_before_it(port: int) -> None:
    predict = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    async with connect(port) as client:
        await client.send(predict + predict + b"no HTTP\r\n\r\n" + predict)

        assert [(await client.read_answer()).status for _ in range(3)] == [200, 200, 400]
        await client.read_end()


async def test_requests_that_wait_on_a_connection_are_bounded(port: int) -> None:
    async with connect(port) as client:
        await client.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 100)

        statuses = [(await client.read_answer()).status for _ in range(LIMITS.pipelined + 2)]

        assert statuses == [200] * (LIMITS.pipelined + 1) + [400]
        await client.read_end()


async def test_an_idle_connection_is_kept_and_then_ended(port: int) -> None:
    async with connect(port) as client:
        for _ in range(2):
            await client.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await client.read_answer()).status == 200
            await asyncio.sleep(LIMITS.head_seconds * 1.1)  # longer than for a head, shorter than for idling

        assert await client.read_end() > LIMITS.head_seconds + LIMITS.keep_alive_seconds


async def test_a_second_request_has_the_time_of_a_head(port: int) -> None:
    async with connect(port) as client:
        await client.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        await client.read_answer()
        await client.send(HEAD)

        assert_problem(await client.read_answer(), 408, "the head")


async def test_a_refused_body_that_goes_on_is_cut_off(port: int) -> None:
    async with connect(port) as client:
        await client.send(HEAD + b"Content-Length: 100000000\r\n\r\n")
        assert (await client.read_answer()).status == 413
        trickle = asyncio.create_task(send_slowly(client, b" " * 1_000_000, pause=0.05, size=10_000))

        with suppress(ConnectionError):  # how the end shows depends on what was on its way
            await client.read_end()
        assert time.monotonic() - client.opened_at < 2
        await stop(trickle)


async def test_a_client_that_does_not_take_its_answers_is_cut_off(shared: Process, port: int) -> None:
    body = b'{"instances": [%b]}' % b",".join([b"[1,2,3,4,5]"] * 10_000)
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    before = count_sockets(shared)
    async with connect(port, limit=1) as client:
        await client.send(request * 6)
        await wait_until(lambda: has_sockets(shared, before + 1))

        await wait_until(lambda: has_sockets(shared, before))


async def test_an_upgrade_is_not_made(port: int) -> None:
    async with connect(port) as client:
        await client.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")

        answer = await client.read_answer()

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await client.read_end()


async def test_trailers_are_no_headers(port: int) -> None:
    async with connect(port) as client:
        chunk = b"%x\r\n%b\r\n" % (len(BODY), BODY)
        await client.send(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\nX-Request-Id: from-a-trailer\r\n\r\n"
        )

        answer = await client.read_answer()

    assert answer.status == 200
    assert answer.headers["x-request-id"] != "from-a-trailer"


async def test_connections_beyond_the_limit_are_answered_503_but_health_is_answered(port: int) -> None:
    async with open_many(port, LIMITS.connections):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            refused = await client.post("/predict", content=BODY)
            checks = [await client.get(path) for path in ("/health", "/health/live", "/health/ready", "/metrics")]
        async with open_many(port, LIMITS.reserved_connections), connect(port) as late:
            assert_problem(await late.read_answer(), 503, "too many connections")
            await late.read_end()
    after = await wait_until(lambda: predict(port))

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["content-type"] == "application/problem+json"
    assert [answer.status_code for answer in checks] == [200] * 4
    assert after.status_code == 200


async def test_refusals_are_counted(port: int) -> None:
    async with connect(port) as client:
        await client.send(b"no HTTP\r\n\r\n")
        await client.read_answer()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        metrics = (await http.get("/metrics")).text

    assert 'http_requests_total{method="OTHER",route="unmatched",status="400"}' in metrics


async def test_sigterm_lets_a_request_that_is_under_way_finish(tmp_path: Path) -> None:
    with run_process(tmp_path) as process:
        await process.wait_until_ready()
        async with connect(process.port) as client:
            await client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:10])
            process.process.send_signal(signal.SIGTERM)
            await wait_until(lambda: has_logged(process, "Shutting down"))
            await client.send(BODY[10:])
            answer = await client.read_answer()
        status = await process.wait()

    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert status == -signal.SIGTERM


async def test_sigterm_answers_503_to_what_is_not_finished_in_time(tmp_path: Path) -> None:
    with run_process(tmp_path, LIMITS) as process:
        await process.wait_until_ready()
        async with await asyncio.start_server(say_nothing, "127.0.0.1", process.database_port):
            async with connect(process.port) as client:
                await client.send(b"GET /predictions HTTP/1.1\r\nHost: x\r\n\r\n")  # waits 5 s for PostgreSQL
                process.process.send_signal(signal.SIGTERM)
                answer = await client.read_answer()
                await client.read_end()
            status = await process.wait()

    assert_problem(answer, 503, "the server is shutting down")
    assert answer.headers["retry-after"] == "1"
    assert status == -signal.SIGTERM
    assert "Exception in ASGI application" not in process.log.read_text()


async def test_deadlines_hold_while_the_server_stops(tmp_path: Path) -> None:
    with run_process(tmp_path, LIMITS) as process:
        await process.wait_until_ready()
        async with connect(process.port) as client:
            await client.send(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:10])
            process.process.send_signal(signal.SIGTERM)
            assert_problem(await client.read_answer(), 408, "the body")
        assert await process.wait() == -signal.SIGTERM


def test_fewer_connections_are_accepted_when_fewer_files_may_be_open() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 800));"
        "from app.server.deadlines import Limits; from app.server.serve import fit_limits;"
        "print(fit_limits(Limits()).connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )

    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert output.stdout == "494 800\n"
    assert "only 800 files may be open: 494 connections are accepted" in output.stderr


def test_serve_with_a_wrong_port_names_what_is_allowed() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "app", "serve", "--port", "70000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert re.search(r"argument --port: invalid number \(0 to 65535\) value: '70000'", ended.stderr)


async def send_slowly(client: Client, data: bytes, *, pause: float, size: int = 1) -> None:
    for start in range(0, len(data), size):
        client.writer.write(data[start : start + size])
        await asyncio.sleep(pause)


async def stop(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def open_many(port: int, count: int) -> AsyncIterator[None]:
    """Hold `count` connections that have been accepted, each at the end of half a head."""
    clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in clients:
        writer.write(HEAD)
        await writer.drain()
    try:
        yield
    finally:
        for _, writer in clients:
            writer.transport.abort()


async def predict(port: int) -> httpx2.Response | None:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answer = await client.post("/predict", content=BODY)
    return answer if answer.status_code == 200 else None


async def has_logged(process: Process, text: str) -> bool:
    return text in process.log.read_text()


async def has_sockets(process: Process, count: int) -> bool:
    return count_sockets(process) == count


def count_sockets(process: Process) -> int:
    """Count the sockets that a process holds, those of its loop included."""
    links = []
    for path in Path(f"/proc/{process.process.pid}/fd").iterdir():
        try:
            links.append(path.readlink().name)
        except FileNotFoundError:
            continue
    return sum(link.startswith("socket:") for link in links)


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    finally:
        writer.transport.abort()
