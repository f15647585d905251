"""The short door of POST /predict: from its connection to the function that serves it, without ASGI.

ASGI's task, scope and messages cost as much again as the rest of a prediction's HTTP. What such a request shares with
others is in `app.server.connection`: deadlines, limits, the order of pipelined requests. Whatever is unusual about a
request sends it through ASGI.
"""

import asyncio
import time
from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.predict import PATH, predict
from app.api.predict_batch import Answer
from app.state import State
from app.web.body import LARGE_BODY_BYTES
from app.web.requests import finish_request, take_request_id

TARGET = PATH.encode()

NOBODY = asyncio.Event()
"""The event that a connection sets for the task of a request, of which there is none."""


class DirectCycle(RequestResponseCycle):
    """One request in the place that uvicorn gives it in its connection."""

    message_event = NOBODY
    response_started = False
    response_complete = False
    disconnected = False
    more_body = True
    _answer: "asyncio.Future[Answer] | None" = None

    def __init__(self, connection: HttpToolsProtocol, state: State) -> None:
        self.transport = connection.transport
        self.state = state
        self.headers = connection.headers
        self.client = connection.client
        self.default_headers = connection.server_state.default_headers
        self.keep_alive = connection.parser.should_keep_alive()
        self.on_response = connection.on_response_complete
        self.body = bytearray()

    def begin(self) -> None:
        """Serve it, now that its body is complete."""
        self._received_at = time.perf_counter()
        self._request_id = take_request_id(self.headers)
        self._answer = predict(self.headers, bytes(self.body), self.state, self._request_id.decode())
        self._answer.add_done_callback(self._finish)

    def abandon(self) -> None:
        """Serve it no further, since nobody waits for its answer; without effect when it is answered."""
        self.disconnected = True
        if self._answer is not None:
            self._answer.cancel()

    def _finish(self, answered: "asyncio.Future[Answer]") -> None:
        """Write the whole answer with one system call, if somebody waits for it."""
        if self.disconnected:
            return
        status, headers, body = answered.result()
        self.response_started = self.response_complete = True
        lines = [b"%b: %b\r\n" % header for header in (*self.default_headers, *headers)]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(
            b"".join([STATUS_LINE[status], *lines, b"x-request-id: ", self._request_id, b"\r\n\r\n", body])
        )
        if not self.keep_alive:
            self.transport.close()
        seconds = time.perf_counter() - self._received_at
        finish_request(self.state.access_log, self.client, "POST", TARGET, PATH, status, seconds, self._request_id)
        self.on_response()


def is_direct(connection: HttpToolsProtocol) -> bool:
    """Return whether the request whose head is complete can be served directly, in its turn, which is now."""
    return (
        connection.url == TARGET
        and connection.parser.get_method() == b"POST"
        and not connection.expect_100_continue
        and not connection.flow.write_paused
        and not connection.parser.should_upgrade()
        and _is_small(connection.headers)
    )


def _is_small(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether a short body of known length follows."""
    lengths = [value for name, value in headers if name == b"content-length"]
    return len(lengths) == 1 and len(lengths[0]) <= 9 and int(lengths[0]) < LARGE_BODY_BYTES
