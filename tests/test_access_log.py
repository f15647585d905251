"""The access log: one line per request, by whichever door it came, and no request waits for it."""

import asyncio
import json
import os
import re
from collections.abc import Iterator

import httpx2
import pytest
from prometheus_client import REGISTRY

from app.logs import MAX_WAITING_LINES, AccessLog
from tests.support.processes import Server, wait_until

LINE = re.compile(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    app\.access: (\S+) "(.*)" (\d+) (.+) (\S+)')


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe, to be read from and to be written to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_line_for_people_tells_who_asked_what_and_what_was_answered(pipe: tuple[int, int]) -> None:
    log = AccessLog("console", pipe[1])
    log.write(("10.0.0.7", 4711), "POST", b"/predict?a=\xff", 200, 0.01234, b"id-1")
    log.write(None, "-", b"", 408, None, b"id-2")
    log.close()

    lines = [LINE.fullmatch(line) for line in os.read(pipe[0], 65536).decode().splitlines()]

    assert [line.groups() if line else None for line in lines] == [
        ("10.0.0.7:4711", r"POST /predict?a=\xff", "200", "12.3 ms", "id-1"),
        ("-", "- ", "408", "-", "id-2"),
    ]


def test_a_line_for_machines_is_json_with_the_members_of_other_lines(pipe: tuple[int, int]) -> None:
    log = AccessLog("json", pipe[1])
    log.write(("::1", 4711), "GET", b'/page/"x"', 404, 0.5, b"id-1")
    log.close()

    line = json.loads(os.read(pipe[0], 65536))

    assert line.pop("timestamp").endswith(("Z", "+00:00"))
    assert line == {
        "level": "INFO",
        "logger": "app.access",
        "message": 'GET /page/"x" 404',
        "client": "::1:4711",
        "method": "GET",
        "target": '/page/"x"',
        "status": 404,
        "seconds": 0.5,
        "request_id": "id-1",
    }


def test_nobody_waits_when_standard_error_takes_nothing(pipe: tuple[int, int]) -> None:
    dropped = REGISTRY.get_sample_value("access_log_dropped_lines_total") or 0.0
    log = AccessLog("console", pipe[1])  # 64 KiB fit into the pipe, the thread waits with what follows

    for number in range(MAX_WAITING_LINES + 10_000):
        log.write(("10.0.0.7", 4711), "POST", b"/predict", 200, 0.001, b"%d" % number)

    assert (REGISTRY.get_sample_value("access_log_dropped_lines_total") or 0.0) - dropped > 8_000
    log.close()  # gives up in the end


async def test_every_request_has_one_line_whichever_door_it_comes_by(server: Server) -> None:
    await server.start()
    lines = await ask(server)

    assert lines == {
        "direct": ['"POST /predict" 200'],
        "through-asgi": ['"POST /predict?a=1" 200', '"POST /predict" 200'],
        "refused-rows": ['"POST /predict" 422'],
        "elsewhere": ['"GET /nowhere" 404'],
    }
    assert "uvicorn.access" not in server.log.decode()
    await wait_until(lambda: has_logged(server, '"- /no-http" 400 -'))


async def test_under_plain_uvicorn_every_request_has_one_line_too(server: Server) -> None:
    server.command = ("-m", "uvicorn", "app:main", "--port", str(server.port))
    await server.start()
    lines = await ask(server)

    assert lines["direct"] == ['"POST /predict" 200']
    assert server.log.decode().count("GET /nowhere") == 1


async def test_no_line_is_written_when_the_access_log_is_off(server: Server) -> None:
    server.environment["ACCESS_LOG"] = "false"
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        for target in ("/predict", "/predict?a=1"):
            answer = await client.post(target, json={"features": [1, 2, 3, 4, 5]})
            assert answer.status_code == 200
    await server.kill()

    assert "/predict" not in server.log.decode()


async def ask(server: Server) -> dict[str, list[str]]:
    """Send requests of several kinds; return what the lines say, by request id."""
    row, large = {"features": [1, 2, 3, 4, 5]}, {"instances": [[1, 2, 3, 4, 5]] * 4000}
    async with httpx2.AsyncClient(base_url=server.url) as client:
        for target, body, request_id in (
            ("/predict", row, "direct"),
            ("/predict?a=1", row, "through-asgi"),
            ("/predict", large, "through-asgi"),
            ("/predict", {"features": [1]}, "refused-rows"),
        ):
            await client.post(target, json=body, headers={"X-Request-Id": request_id})
        await client.get("/nowhere", headers={"X-Request-Id": "elsewhere"})
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /no-http HTTP/1.1\r\nbad header\r\n\r\n")
    await writer.drain()
    await wait_until(lambda: has_logged(server, "elsewhere\n"))
    writer.close()
    found: dict[str, list[str]] = {}
    for line in server.log.decode().splitlines():
        match = LINE.fullmatch(line)
        if match and match[5] in ("direct", "through-asgi", "refused-rows", "elsewhere"):
            found.setdefault(match[5], []).append(f'"{match[2]}" {match[3]}')
    return found


async def has_logged(server: Server, text: str) -> bool:
    return text in server.log.decode()
