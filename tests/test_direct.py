"""`POST /predict` under `scorekeeper serve`: a request that skips ASGI is answered as one that does not."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn.server import ServerState

from app.server.connection import GuardedConfig, GuardedProtocol, Limits
from app.server.direct import DirectCycle
from tests.test_server import BODY, Answer, Process, connect, run_process

JSON = b"Content-Type: application/json\r\n"
DIRECT, THROUGH_ASGI = b"/predict", b"/predict?"
"""A query, even an empty one, is unusual enough to go through ASGI."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with run_process(tmp_path_factory.mktemp("direct")) as process:
        asyncio.run(process.wait_until_ready())
        yield process


def spell(target: bytes, body: bytes = BODY, headers: bytes = JSON, line: bytes = b"POST %b HTTP/1.1") -> bytes:
    head = line % target + b"\r\nHost: x\r\n" + headers
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def leave_out_ids(answer: Answer) -> tuple[int, dict[str, str], Any]:
    """Of an answer what two answers to one request share."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "date")}
    body = {name: value for name, value in answer.body.items() if name not in ("prediction_id", "instance")}
    for prediction in body.get("predictions", []):
        del prediction["prediction_id"]
    return answer.status, headers, body


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (200, BODY, JSON),
        (200, BODY, b"content-type: application/json; charset=utf-8\r\nX-Request-Id: mine\r\n"),
        (200, BODY, JSON + b"Connection: close\r\n"),
        (200, b'{"instances": [[1,2,3,4,5],[5,4,3,2,1]], "external_ids": ["a", null]}', JSON),
        (400, b"{", JSON),
        (400, b"", JSON),
        (404, b'{"features": [1,2,3,4,5], "model": "none"}', JSON),
        (415, BODY, b"Content-Type: text/plain\r\n"),
        (415, BODY, JSON + b"Content-Encoding: gzip\r\n"),
        (422, b'{"features": [1,2,3,4]}', JSON),
        (422, b"{}", JSON + b"Connection: close\r\n"),
    ],
)
async def test_an_answer_is_the_same_when_the_request_skips_asgi(
    shared: Process, status: int, body: bytes, headers: bytes
) -> None:
    answers = []
    for target in (DIRECT, THROUGH_ASGI):
        async with connect(shared.port) as client:
            await client.send(spell(target, body, headers))
            answers.append(await client.read_answer())
            if b"close" in headers:
                await client.read_end()

    assert answers[0].status == status
    assert leave_out_ids(answers[0]) == leave_out_ids(answers[1])
    assert ("mine" in answers[0].headers["x-request-id"]) == (b"mine" in headers)


async def test_answers_keep_the_order_of_requests_when_some_skip_asgi(shared: Process) -> None:
    bodies = [json.dumps({"instances": [[1, 2, 3, 4, 5]] * rows}).encode() for rows in range(1, 9)]
    targets = [DIRECT, THROUGH_ASGI, DIRECT, DIRECT, THROUGH_ASGI, THROUGH_ASGI, DIRECT, DIRECT]
    async with connect(shared.port) as client:
        await client.send(b"".join(spell(target, body) for target, body in zip(targets, bodies, strict=True)))

        answers = [await client.read_answer() for _ in bodies]

    assert [len(answer.body["predictions"]) for answer in answers] == list(range(1, 9))


async def test_an_error_comes_in_its_turn_when_requests_skip_asgi(shared: Process) -> None:
    async with connect(shared.port) as client:
        await client.send(spell(DIRECT) + spell(DIRECT, b"{}") + spell(DIRECT))

        assert [(await client.read_answer()).status for _ in range(3)] == [200, 422, 200]


async def test_nothing_follows_the_last_answer_when_requests_come_behind_it(shared: Process) -> None:
    async with connect(shared.port) as client:
        await client.send(spell(DIRECT, b"{}", JSON + b"Connection: close\r\n") + spell(DIRECT))

        assert (await client.read_answer()).status == 422
        await client.read_end()


async def test_a_body_in_pieces_is_answered_when_it_is_complete(shared: Process) -> None:
    request = spell(DIRECT)
    async with connect(shared.port) as client:
        for at in range(0, len(request), 7):
            await client.send(request[at : at + 7])
            await asyncio.sleep(0.001)  # so that the pieces are pieces on their way too

        assert (await client.read_answer()).status == 200


async def test_http_1_0_is_answered_and_ended(shared: Process) -> None:
    async with connect(shared.port) as client:
        await client.send(spell(DIRECT, line=b"POST %b HTTP/1.0"))

        answer = await client.read_answer()

        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await client.read_end()


async def test_the_server_serves_on_when_clients_leave_before_their_answer(shared: Process) -> None:
    for _ in range(50):
        async with connect(shared.port) as client:
            await client.send(spell(DIRECT))
    async with connect(shared.port) as client:
        await client.send(spell(DIRECT))

        assert (await client.read_answer()).status == 200
    log = shared.log.read_text()
    assert "protocol.py" not in log
    assert "direct.py" not in log
    assert "/predict failed" not in log


class Wire(asyncio.Transport):
    """The far end of a connection: what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Stay as it is: what is written afterwards is to be seen."""

    def resume_reading(self) -> None:
        """Nothing was paused."""


async def receive_head() -> tuple[GuardedProtocol, DirectCycle, Wire]:
    """A connection that has read the head of a request, whose body never comes."""
    config = GuardedConfig("127.0.0.1", 0, access_log=False, limits=Limits())
    connection, wire = GuardedProtocol(config, ServerState(), {"scorekeeper": None}), Wire()
    connection.access_log = False
    connection.connection_made(wire)
    connection.data_received(spell(DIRECT)[: -len(BODY)])
    cycle = connection.cycle
    assert isinstance(cycle, DirectCycle)
    return connection, cycle, wire


async def test_only_the_first_answer_is_written() -> None:
    _, cycle, wire = await receive_head()

    cycle.answer(200, [], b"first")
    cycle.answer(503, [], b"second")

    assert [line.endswith(b"first") for line in wire.written] == [True]


async def test_nothing_is_written_when_the_client_has_gone() -> None:
    connection, cycle, wire = await receive_head()
    connection.connection_lost(None)

    cycle.answer(200, [], b"late")

    assert wire.written == []
