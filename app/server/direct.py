"""A small `POST /predict` goes from its connection to its batch directly: without ASGI's task, scope and messages.

They cost as much again as the rest of a prediction's HTTP. What such a request shares with others is in
`app.server.connection`: deadlines, limits, the order of pipelined requests. Whatever is unusual about a request sends
it through ASGI.
"""

import asyncio
from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.api.predict import begin_predict
from app.web.body import LARGE_BODY_BYTES

TARGET = b"/predict"

NOBODY = asyncio.Event()
"""The event that a connection sets for the task of a request, of which there is none."""


class DirectCycle(RequestResponseCycle):
    """One request in the place that uvicorn gives it in its connection; a channel for its answer."""

    message_event = NOBODY
    response_started = False
    response_complete = False
    disconnected = False
    more_body = True

    def __init__(self, connection: HttpToolsProtocol) -> None:
        self.transport = connection.transport
        self.state = connection.app_state["scorekeeper"]
        self.headers = connection.headers
        self.default_headers = connection.server_state.default_headers
        self.keep_alive = connection.parser.should_keep_alive()
        self.on_response = connection.on_response_complete
        self.body = bytearray()

    def begin(self) -> None:
        """Serve it, now that its body is complete."""
        begin_predict(self.headers, bytes(self.body), self.state, self)

    @property
    def is_closed(self) -> bool:
        """Tell that it is answered, or that nobody waits for it any more."""
        return self.response_complete or self.disconnected

    def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Write the whole answer with one system call, if somebody waits for it."""
        if self.is_closed:
            return
        self.response_started = self.response_complete = True
        lines = [b"%b: %b\r\n" % header for header in (*self.default_headers, *headers)]
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def is_direct(connection: HttpToolsProtocol) -> bool:
    """Tell whether the request whose head is complete can be served directly, in its turn, which is now."""
    return (
        connection.url == TARGET
        and connection.parser.get_method() == b"POST"
        and not connection.access_log
        and not connection.expect_100_continue
        and not connection.flow.write_paused
        and not connection.parser.should_upgrade()
        and _is_small(connection.headers)
    )


def _is_small(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Tell whether a short body of known length follows."""
    lengths = [value for name, value in headers if name == b"content-length"]
    return len(lengths) == 1 and len(lengths[0]) <= 9 and int(lengths[0]) < LARGE_BODY_BYTES
