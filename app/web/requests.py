"""What is done for every request, at either door: its id, its counters and its line in the access log."""

import itertools
import re
import secrets
import time
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics
from app.logs import AccessLog, Client

Headers = Sequence[tuple[bytes, bytes]]
"""Names, in lower case, and values."""

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
"""A client's X-Request-Id is kept if it has this form, else replaced."""

PROCESS_ID = secrets.token_hex(8).encode()
COUNTER = itertools.count(1)
"""A request id is PROCESS_ID and this number: unique, without a system call per request."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""Methods that become metric labels as they are; any other counts as OTHER."""

ACCESS_LOG_KEY = "access_log"
"""The key of the access log in the lifespan's state and in every request's; the value None: it is off."""

RECEIVED_AT = "scorekeeper.received_at"
"""The scope's key for the time at which the server received the request's last byte, by `time.perf_counter`."""


def take_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the client's request id if it matches REQUEST_ID, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return bytes(value)
    return b"%s%016x" % (PROCESS_ID, next(COUNTER))


def finish_request(  # noqa: PLR0913, PLR0917  # an object that holds them would cost each request as much again
    access_log: AccessLog | None,
    client: Client,
    method: str,
    target: bytes,
    route: str,
    status: int,
    seconds: float | None,
    request_id: bytes,
) -> None:
    """Count an answered request and write its line in the access log.

    `seconds` run from the request's last byte received to the answer's last byte handed to the socket; None: the
    request was refused before its last byte came.
    """
    metrics.count_request(method if method in METHODS else "OTHER", route, status, seconds)
    if access_log is not None:
        access_log.write(client, method, target, status, seconds, request_id)


class RequestMiddleware:
    """Gives each request an id, answers it in X-Request-Id, and counts the answer by route template."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application; add the id to a request's answer, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = take_request_id(scope["headers"])
        scope["scorekeeper.request_id"] = request_id.decode()
        status, received_at = 500, time.perf_counter()

        async def receive_and_time() -> Message:
            nonlocal received_at
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                received_at = time.perf_counter()
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive_and_time, send_with_id)
        finally:
            seconds = time.perf_counter() - scope.get(RECEIVED_AT, received_at)
            finish_request(
                scope["state"][ACCESS_LOG_KEY],
                scope["client"],
                scope["method"],
                _get_target(scope),
                scope["route"].path if "route" in scope else "unmatched",
                status,
                seconds,
                request_id,
            )


def _get_target(scope: Scope) -> bytes:
    """Return the path and query of a request as they were sent."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    path = path.removeprefix(scope.get("root_path", "").encode())  # servers add it to the path that they received
    return b"%b?%b" % (path, query) if query else path


def get_path(scope: Scope) -> str:
    """Return the path of a request without the prefix of a proxy (`root_path`)."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def get_request_id(scope: Scope) -> str:
    """Return the id under which this request is answered and logged."""
    request_id: str = scope["scorekeeper.request_id"]
    return request_id
