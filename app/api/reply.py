"""The answer to one request of /predict, and the two ways it goes out: through ASGI, or to the connection directly."""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from starlette.types import Send

from app import metrics
from app.errors import ScorekeeperError
from app.web.problem import render_problem

logger = logging.getLogger(__name__)

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


class Channel(Protocol):
    """Where the answer of one request goes."""

    @property
    def is_closed(self) -> bool:
        """Tell that the answer has been sent, or that nobody waits for it any more."""

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the whole answer, unless it is closed."""


class AsgiChannel:
    """Hands the answer to the task that serves the request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._answer: asyncio.Future[tuple[int, Headers, bytes]] = loop.create_future()

    @property
    def is_closed(self) -> bool:
        """Tell that the task has its answer, or has ended."""
        return self._answer.done()

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Wake the task."""
        if not self.is_closed:
            self._answer.set_result((status, headers, body))

    async def send_answer(self, send: Send) -> None:
        """Wait for the answer and send it."""
        status, headers, body = await self._answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Reply:
    """The answer of one request, of which its batch takes care as of a future: a body for 200, or an error."""

    __slots__ = ("_channel", "_started", "request_id")

    def __init__(self, channel: Channel, request_id: bytes) -> None:
        self._started = time.perf_counter()
        self._channel = channel
        self.request_id = request_id

    def done(self) -> bool:
        """Tell that it is given, or that nobody waits for it."""
        return self._channel.is_closed

    def set_result(self, body: bytes) -> None:
        """Answer 200."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.request_id),
        ]
        self._answer(200, headers, body)

    def set_exception(self, error: Exception) -> None:
        """Answer an error."""
        problem = render_problem(error, self.request_id.decode())
        if not isinstance(error, ScorekeeperError):
            logger.error("POST /predict failed", exc_info=error)
        self._answer(
            problem.status_code, [*problem.raw_headers, (b"x-request-id", self.request_id)], bytes(problem.body)
        )

    def _answer(self, status: int, headers: Headers, body: bytes) -> None:
        self._channel.answer(status, headers, body)
        metrics.count_request("POST", "/predict", status, time.perf_counter() - self._started)
