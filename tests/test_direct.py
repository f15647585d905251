"""`POST /predict` under `scorekeeper serve`: a request that skips ASGI is answered as one that does not."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.web.body import LARGE_BODY_BYTES
from tests.support.connections import BODY, Answer, Process, connect, run_process
from tests.support.processes import wait_until

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


@pytest.mark.parametrize("headers", [JSON, JSON + b"Connection: keep-alive\r\n"])
async def test_http_1_0_is_answered_and_ended(shared: Process, headers: bytes) -> None:
    async with connect(shared.port) as client:
        await client.send(spell(DIRECT, headers=headers, line=b"POST %b HTTP/1.0"))

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
    assert "connection.py" not in log
    assert "direct.py" not in log
    assert "/predict failed" not in log


async def test_answers_that_nobody_reads_do_not_pile_up(shared: Process) -> None:
    """Behind a client that does not read, the next request waits for it, instead of filling the server's memory."""
    body = json.dumps({"instances": [[1, 2, 3, 4, 5]] * 1000}).encode()
    assert len(body) < LARGE_BODY_BYTES
    async with connect(shared.port, limit=1024) as client:
        sent = 0
        while sent < 99:  # up to 20 MB of answers, of which the sockets' buffers hold a part
            sent += 1
            answered = await count_answered(shared) + 1
            client.writer.write(spell(DIRECT, body))
            try:
                async with asyncio.timeout(5):
                    await wait_until(partial(reach_answered, shared, answered))
            except TimeoutError:
                break  # the server waits until this client reads

        answers = [await client.read_answer() for _ in range(sent)]

    assert sent < 99
    assert [len(answer.body["predictions"]) for answer in answers] == [1000] * sent


@pytest.mark.parametrize("target", [DIRECT, THROUGH_ASGI])
async def test_the_time_of_a_request_begins_when_its_last_byte_has_come(shared: Process, target: bytes) -> None:
    request = spell(target)
    before = await sum_seconds(shared)
    async with connect(shared.port) as client:
        await client.send(request[:-5])
        await asyncio.sleep(1)  # what the client takes is no time of ours
        await client.send(request[-5:])

        assert (await client.read_answer()).status == 200
    assert await sum_seconds(shared) - before < 0.5


async def reach_answered(process: Process, count: float) -> bool:
    return await count_answered(process) >= count


async def count_answered(process: Process) -> float:
    return await scrape(process, 'http_requests_total{method="POST",route="/predict",status="200"}')


async def sum_seconds(process: Process) -> float:
    return await scrape(process, 'http_request_duration_seconds_sum{method="POST",route="/predict"}')


async def scrape(process: Process, series: str) -> float:
    async with httpx2.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{process.port}/metrics")).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series))


async def test_a_client_that_leaves_before_its_answer_is_counted(tmp_path: Path) -> None:
    with run_process(tmp_path) as process:
        await process.wait_until_ready()
        gone = 'http_requests_total{method="POST",route="/predict",status="499"}'
        body = json.dumps({"instances": [[1, 2, 3, 4, 5]] * 1000}).encode()

        async def has_counted() -> bool:
            async with connect(process.port) as client:
                await client.send(spell(DIRECT, body))
            return await scrape(process, gone) > 0

        await wait_until(has_counted)
