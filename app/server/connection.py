"""One connection of `scorekeeper serve`: uvicorn's, with deadlines, limits and the short door of POST /predict."""

import asyncio
import logging
import math
import time
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.server.deadlines import ANSWERING, BODY, CLOSING, DISCARDING, HEAD, Deadlines, Limits, RefusedError
from app.server.direct import DirectCycle, is_direct
from app.state import STATE_KEY, State
from app.web.problem import render_at
from app.web.requests import ACCESS_LOG_KEY, RECEIVED_AT, finish_request, take_request_id

logger = logging.getLogger(__name__)

RESERVED_PATHS = frozenset({b"/health", b"/health/live", b"/health/ready", b"/metrics"})
"""Paths that are also served on connections beyond the limit: a full server must not look dead."""


class GuardedConfig(Config):
    """uvicorn's configuration, with our limits for the protocol."""

    def __init__(self, host: str, port: int, *, limits: Limits, root_path: str = "") -> None:
        super().__init__(
            "app:main",
            host=host,
            port=port,
            root_path=root_path,
            loop="uvloop",
            http=GuardedProtocol,
            ws="none",
            lifespan="on",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.graceful_seconds) + 1,
        )
        self.limits = limits


class GuardedProtocol(HttpToolsProtocol):
    """One connection; `Deadlines` decides whether it is within its deadlines and limits."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, GuardedConfig)
        self.url = b""
        self.headers = []
        self._content_length = b""
        self.limits = config.limits
        self.state: State = app_state[STATE_KEY]
        self._deadlines = Deadlines(config.limits, self.loop.time())
        self._is_surplus = False
        self._last_answer: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request; answer 503 at once if this connection is beyond all limits."""
        super().connection_made(transport)
        surplus = len(self.connections) - self.limits.connections
        self._is_surplus = surplus > 0
        if surplus > self.limits.reserved_connections:
            self._deadlines.close(self.loop.time())
            transport.write(self._answer_refusal(_refuse_surplus()))
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request of the short door: its client has gone."""
        super().connection_lost(exc)
        if isinstance(self.cycle, DirectCycle):
            self.cycle.abandon()

    def data_received(self, data: bytes) -> None:
        """Parse the data; end the connection if it is not valid HTTP or exceeds a limit."""
        deadlines = self._deadlines
        if deadlines.phase is CLOSING:
            return
        deadlines.feed(len(data))
        try:
            self.parser.feed_data(data)
            if deadlines.phase is HEAD or deadlines.phase is BODY or deadlines.phase is DISCARDING:
                deadlines.end_feed(len(data), self.loop.time(), self.url, self.headers)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # the wish to upgrade is ignored; the parser reads no data after this request
        except httptools.HttpParserError as error:
            cause = error.__context__
            refusal = RefusedError(400, "not a valid HTTP/1.1 request")
            self._refuse(cause if isinstance(cause, RefusedError) else refusal)
        except RefusedError as refusal:
            self._refuse(refusal)

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.url, self.headers, self.expect_100_continue = b"", [], False  # the scope is made later, only for ASGI
        self._content_length = b""
        self._deadlines.begin_head(len(self.pipeline))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, and what the choice of the door needs. Replaces uvicorn's method."""
        name = name.lower()
        self.headers.append((name, value))
        if name == b"content-length":
            self._content_length = value
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True

    def on_headers_complete(self) -> None:
        """Begin the request at the short door or at ASGI, if its head is within the limits."""
        if self._is_surplus and self.url.partition(b"?")[0] not in RESERVED_PATHS:
            raise _refuse_surplus()
        self._deadlines.begin_body(self.url, self.headers)
        cycle = self._get_cycle()
        if (
            (cycle is None or cycle.response_complete)
            and not self._is_surplus
            and is_direct(self, self._content_length)
        ):
            self.cycle = DirectCycle(self, self.state)
        else:
            self._begin_asgi()
        if self._is_surplus:
            self.cycle.keep_alive = False
        self.headers = []  # the parser appends trailers, which are not headers (RFC 9110, section 6.5.1)

    def _begin_asgi(self) -> None:
        """Begin the request at ASGI: uvicorn makes its scope in `on_message_begin`, so that is called here."""
        url, headers, expects_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects_continue
        self.scope["headers"] = headers
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body. Replaces uvicorn's method, which checks for a websocket each time."""
        self._deadlines.take_body()
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Mark the body as complete, or wait for the next request if this one is answered already."""
        self._deadlines.end_request()
        cycle = self.cycle
        if cycle.response_complete:
            self._deadlines.begin_idle(self.loop.time())
            return
        cycle.more_body = False
        if isinstance(cycle, DirectCycle):
            cycle.begin()
        else:
            cycle.scope[RECEIVED_AT] = time.perf_counter()  # type: ignore[literal-required]  # a key of ours
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Go on to the next request. Replaces uvicorn's method, which starts a timer per answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._deadlines.close_written(self.loop.time())
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_answer is not None:
            self._end_with(self._last_answer)
        elif self._deadlines.phase is BODY:
            if self.cycle.response_complete:
                self._deadlines.discard(self.loop.time())
        elif self._deadlines.phase is ANSWERING:
            self._deadlines.begin_idle(self.loop.time())

    def pause_writing(self) -> None:
        """Start the write deadline: the client does not read its answer."""
        super().pause_writing()
        self._deadlines.pause_writing(self.loop.time())

    def resume_writing(self) -> None:
        """Stop the write deadline: the client has read most of its answer."""
        super().resume_writing()
        self._deadlines.resume_writing()

    def check(self, now: float) -> None:
        """End the connection if one of its deadlines has passed."""
        verdict = self._deadlines.check(now, is_reading=not self.flow.read_paused)
        if verdict == "abort":
            self.transport.abort()
        elif verdict == "close":
            self.transport.close()
        elif verdict is not None:
            self._refuse(verdict)

    def give_up(self) -> None:
        """Close the connection; answer 503 first if its only request has no answer yet."""
        cycle = self._get_cycle()
        if cycle is None or self.pipeline or cycle.disconnected or cycle.response_started:
            self.transport.abort()
            return
        _abandon(cycle)
        self.transport.write(self._answer_refusal(RefusedError(503, "the server is shutting down")))
        self.transport.close()

    def _get_cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # of the newest request; None before the first, which uvicorn's annotation leaves out

    def _refuse(self, error: RefusedError) -> None:
        """Answer the error instead of the application, after the answers to earlier requests, and close."""
        is_begun = self._deadlines.phase in (BODY, DISCARDING)
        cycle = self._get_cycle()
        is_answering = not is_begun and cycle is not None and not cycle.response_complete
        self._deadlines.close()
        if is_begun:
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
                is_answering = True
            elif self.cycle.response_started:
                self.transport.abort()
                return
            _abandon(self.cycle)
        if is_answering:
            self._last_answer = self._answer_refusal(error)
        else:
            self._end_with(self._answer_refusal(error))

    def _end_with(self, answer: bytes) -> None:
        """Write the last answer, and give the client some time to read it."""
        self._deadlines.close(self.loop.time())
        self.transport.write(answer)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _answer_refusal(self, error: RefusedError) -> bytes:
        """Return the whole answer as bytes, and count it."""
        logger.debug("refused a request: %d %s", error.status, error)
        request_id = take_request_id(())
        answer = render_at(self.url.partition(b"?")[0].decode("latin-1"), error, request_id.decode())
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            (b"x-request-id", request_id),
            (b"connection", b"close"),
        ]
        if error.status == 503:
            headers.append((b"retry-after", b"1"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        finish_request(
            self.app_state[ACCESS_LOG_KEY], self.client, "-", self.url, "unmatched", error.status, None, request_id
        )
        return STATUS_LINE[error.status] + lines + b"\r\n" + bytes(answer.body)


def _refuse_surplus() -> RefusedError:
    return RefusedError(503, "too many connections are open")


def _abandon(cycle: RequestResponseCycle) -> None:
    """Tell the application that its client has gone; its later messages are neither sent nor logged as errors."""
    if isinstance(cycle, DirectCycle):
        cycle.abandon()
        return
    cycle.disconnected = True
    cycle.message_event.set()
    cycle.logger = logging.Logger("abandoned", logging.CRITICAL + 1)  # noqa: LOG001  # in no hierarchy: logs nothing
