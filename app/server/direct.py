"""The short door of POST /predict: the connection calls the function that serves it, without ASGI.

ASGI's task, scope and messages would double the cost of a prediction's HTTP. Deadlines, limits and the order of
pipelined requests are the same as for other requests (`app.server.connection`). A request that is unusual in any way
goes through ASGI.
"""

import asyncio
import time

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.predict import PATH, predict
from app.api.predict_batch import Answer, PredictJob
from app.state import State
from app.web.body import LARGE_BODY_BYTES
from app.web.requests import ACCESS_LOG_KEY, finish_request, take_request_id

TARGET = PATH.encode()

CLIENT_GONE = 499
"""The status of a request whose client left before its answer; only metrics and the access log show it."""

NOBODY = asyncio.Event()
"""The event with which a connection wakes the task of a request; a request of the short door has no task."""


class DirectCycle(RequestResponseCycle):
    """One request, in place of the cycle that uvicorn's connection keeps for each request."""

    message_event = NOBODY
    response_started = False
    response_complete = False
    disconnected = False
    more_body = True
    _job: PredictJob | None = None

    def __init__(self, connection: HttpToolsProtocol, state: State) -> None:
        self.transport = connection.transport
        self.state = state
        self.headers = connection.headers
        self.lines = connection.app_state[ACCESS_LOG_KEY]
        self.client = connection.client
        self.default_headers = connection.server_state.default_headers
        self.keep_alive = connection.parser.get_http_version() != "1.0" and connection.parser.should_keep_alive()
        self.on_response = connection.on_response_complete
        self.body = bytearray()

    def begin(self) -> None:
        """Serve the request, whose body is complete."""
        self._received_at = time.perf_counter()
        self._request_id = take_request_id(self.headers)
        self._job = predict(self.headers, bytes(self.body), self.state, self._request_id.decode(), self._finish)

    def abandon(self) -> None:
        """Abandon the request: its client has gone. Has no effect when it is answered."""
        self.disconnected = True
        if self._job is not None:
            self._job.is_abandoned = True
            self._job = None
            self._count(CLIENT_GONE)

    def _finish(self, answer: Answer) -> None:
        """Write the whole answer with one system call, unless the client has gone."""
        self._job = None  # job and cycle refer to each other: without this only the garbage collector would free them
        if self.disconnected or self.response_complete or self.transport.is_closing():
            return
        status, headers, body = answer
        self.response_started = self.response_complete = True
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in self.default_headers]]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"x-request-id: ", self._request_id, b"\r\n\r\n", body)
        self.transport.write(b"".join(lines))
        if not self.keep_alive:
            self.transport.close()
        self._count(status)
        self.on_response()

    def _count(self, status: int) -> None:
        seconds = time.perf_counter() - self._received_at
        finish_request(self.lines, self.client, "POST", TARGET, PATH, status, seconds, self._request_id)


def is_direct(connection: HttpToolsProtocol, content_length: bytes) -> bool:
    """Return whether the short door can serve this request, whose head is complete and whose turn it is.

    `content_length` is the value of the header, which the parser has checked; empty: there is none.
    """
    return (
        connection.url == TARGET
        and connection.parser.get_method() == b"POST"
        and not connection.expect_100_continue
        and not connection.flow.write_paused
        and not connection.parser.should_upgrade()
        and 0 < len(content_length) <= 9
        and int(content_length) < LARGE_BODY_BYTES
    )
