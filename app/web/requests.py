"""Around every request: its id, and its counters."""

import itertools
import re
import secrets
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
"""A client's X-Request-Id that is taken over; anything else is replaced."""

PROCESS_ID = secrets.token_hex(8).encode()
COUNTER = itertools.count(1)
"""A request id is the random part of this process and a number: unique, without a system call per request."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
"""Methods that become metric labels as they are; what else a client invents counts as OTHER."""


class RequestMiddleware:
    """Gives each request an id, answers it in X-Request-Id, and counts the answer by route template."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on; requests come back with an id and leave a count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = take_request_id(scope["headers"])
        scope["scorekeeper.request_id"] = request_id.decode()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            route = scope["route"].path if "route" in scope else "unmatched"
            metrics.count_request(method, route, status, time.perf_counter() - started)


def get_request_id(scope: Scope) -> str:
    """Return the id that this request is answered and logged under."""
    request_id: str = scope["scorekeeper.request_id"]
    return request_id


def take_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the client's request id if it is sane, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return bytes(value)
    return b"%s%016x" % (PROCESS_ID, next(COUNTER))
