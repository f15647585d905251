"""One connection of `scorekeeper serve`: deadlines and limits for what comes before the application sees it."""

import asyncio
import enum
import logging
import math
import secrets
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app import metrics
from app.errors import ScorekeeperError
from app.server.direct import DirectCycle, is_direct
from app.web.problem import render_at

logger = logging.getLogger(__name__)

RESERVED_PATHS = frozenset({b"/health", b"/health/live", b"/health/ready", b"/metrics"})
"""What connections beyond the limit may still ask: a full server must not look dead."""

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how large, how many. Deadlines are looked at every 0.1 s."""

    head_seconds: float = 10.0
    """For a request's line and headers: from its first byte, the first request's from the connection."""
    body_seconds: float = 120.0
    """For a whole body: 8 MiB at 70 KB/s."""
    progress_seconds: float = 10.0
    progress_bytes: int = 4096
    """A body that is not complete brings this much in each `progress_seconds`."""
    keep_alive_seconds: float = 75.0
    """Between two requests: longer than load balancers keep a connection (60 s), so that they close it, not we."""
    write_seconds: float = 60.0
    """For a client to take an answer that is larger than the socket's buffers."""
    linger_seconds: float = 2.0
    """For a refused client to read why: closing at once would reset the connection under what it still sends."""
    graceful_seconds: float = 20.0
    """From the closing of the socket to 503 for what is not answered: with the drain less than Kubernetes' 30 s."""
    target_bytes: int = 8192
    """The request line's path and query."""
    header_bytes: int = 64 * 1024
    header_count: int = 100
    connections: int = 1000
    reserved_connections: int = 50
    """Beyond `connections`, for RESERVED_PATHS; what else comes over these is answered 503."""
    pipelined: int = 32
    """Requests of one connection that wait for their turn."""


class RefusedError(ScorekeeperError):
    """A request that the application does not get to see; the connection ends with this answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class GuardedConfig(Config):
    """uvicorn's configuration, with our limits for the protocol."""

    def __init__(self, host: str, port: int, *, access_log: bool, limits: Limits) -> None:
        super().__init__(
            "app:main",
            host=host,
            port=port,
            loop="uvloop",
            http=GuardedProtocol,
            ws="none",
            lifespan="on",
            access_log=access_log,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.graceful_seconds) + 1,
        )
        self.limits = limits


class Phase(enum.Enum):
    """What a connection waits for."""

    IDLE = enum.auto()
    """The first byte of a request."""
    HEAD = enum.auto()
    BODY = enum.auto()
    ANSWERING = enum.auto()
    """The application; the client owes nothing."""
    CLOSING = enum.auto()
    """The client's reading of the last answer; what it sends is not looked at."""


IDLE, HEAD, BODY, ANSWERING, CLOSING = Phase  # a look into an Enum costs 0.1 us on Python 3.11, ten per request


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A request that arrives in one piece costs a few assignments and one look at the loop's clock."""

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
        self.limits = config.limits
        self._phase = IDLE
        self._deadline = NEVER
        self._body_deadline = NEVER
        self._write_deadline = NEVER
        self._progress_bytes = 0
        self._silent_bytes = 0  # received since the last that the application got: of a head, a chunk's frame, trailers
        self._is_surplus = False
        self._last_answer: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for a request; a connection beyond all limits is answered 503 at once."""
        super().connection_made(transport)
        self._deadline = self.loop.time() + self.limits.head_seconds
        surplus = len(self.connections) - self.limits.connections
        self._is_surplus = surplus > 0
        if surplus > self.limits.reserved_connections:
            self._phase = CLOSING
            transport.write(self._render(_name_surplus()))
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse; what cannot be parsed, or is beyond a limit, ends the connection."""
        if self._phase is CLOSING:
            return
        self._silent_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # answered as if it had not asked; the parser reads nothing behind it
        except httptools.HttpParserError as error:
            refusal = error.__context__
            self._refuse(
                refusal
                if isinstance(refusal, RefusedError)
                else RefusedError(400, "this is no HTTP/1.1 request that is read here")
            )
        else:
            if self._phase is HEAD or self._phase is BODY:
                self._await_more(len(data))

    def on_message_begin(self) -> None:
        """Begin a request."""
        self.url, self.headers, self.expect_100_continue = b"", [], False  # the scope is made when it is needed
        if len(self.pipeline) >= self.limits.pipelined:
            raise RefusedError(400, f"more than {self.limits.pipelined} requests wait on this connection")
        self._phase = HEAD
        if self._get_cycle() is not None:  # the first request's deadline runs since the connection was made
            self._deadline = NEVER

    def on_headers_complete(self) -> None:
        """Hand the request to the application, if its head is within the limits."""
        limits = self.limits
        if len(self.url) > limits.target_bytes or len(self.headers) > limits.header_count:
            raise self._name_large_head()
        if self._silent_bytes > limits.header_bytes:
            size = sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)
            if size > limits.header_bytes:
                raise self._name_large_head()
        if self._is_surplus and self.url.partition(b"?")[0] not in RESERVED_PATHS:
            raise _name_surplus()
        cycle = self._get_cycle()
        if (cycle is None or cycle.response_complete) and not self._is_surplus and is_direct(self):
            self.cycle = DirectCycle(self)
        else:
            self._begin_asgi()
        if self._is_surplus:
            self.cycle.keep_alive = False
        self.headers = []  # where trailers go, which are no headers (RFC 9110, section 6.5.1)
        self._phase = BODY
        self._deadline = NEVER
        self._silent_bytes = 0

    def _begin_asgi(self) -> None:
        """Hand the request to the application, which uvicorn does with the scope that it makes for a new message."""
        url, headers, expects_continue = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects_continue
        self.scope["headers"] = headers
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body; instead of uvicorn's, without a thought of websockets, as the next."""
        self._silent_bytes = 0
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        """Leave the rest to the application, or wait for the next request when it has answered already."""
        self._silent_bytes = 0
        self._deadline = NEVER
        self._phase = ANSWERING
        cycle = self.cycle
        if cycle.response_complete:
            self._begin_idle()
            return
        cycle.more_body = False
        if isinstance(cycle, DirectCycle):
            cycle.begin()
        else:
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Go on to the next request; instead of uvicorn's, without a timer per answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._phase = CLOSING
            self._deadline = self.loop.time() + self.limits.write_seconds
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_answer is not None:
            self._end_with(self._last_answer)
        elif self._phase is ANSWERING:
            self._begin_idle()
        elif self._phase is BODY and self.cycle.response_complete:
            self._deadline = self.loop.time() + self.limits.linger_seconds

    def pause_writing(self) -> None:
        """Begin to wait for a client that does not take its answer."""
        super().pause_writing()
        self._write_deadline = self.loop.time() + self.limits.write_seconds

    def resume_writing(self) -> None:
        """Go on: the client has taken most of its answer."""
        super().resume_writing()
        self._write_deadline = NEVER

    def check(self, now: float) -> None:
        """End the connection if its time is over."""
        if now >= self._write_deadline:
            self.transport.abort()
        elif now >= self._deadline:
            self._expire(now)

    def give_up(self) -> None:
        """Answer 503 in place of the application, if nothing was answered yet, and close."""
        cycle = self._get_cycle()
        if cycle is None or self.pipeline or cycle.disconnected or cycle.response_started:
            self.transport.abort()
            return
        _abandon(cycle)
        self.transport.write(self._render(RefusedError(503, "the server is shutting down")))
        self.transport.close()

    def _get_cycle(self) -> RequestResponseCycle | None:
        return self.cycle  # the newest request's; uvicorn's annotation leaves out that there may be none yet

    def _begin_idle(self) -> None:
        self._phase = IDLE
        self._deadline = self.loop.time() + self.limits.keep_alive_seconds

    def _await_more(self, size: int) -> None:
        """Note what has arrived of a request that is not complete."""
        if self._silent_bytes > self.limits.header_bytes:
            framing = RefusedError(400, "the body has more framing than content")
            self._refuse(self._name_large_head() if self._phase is HEAD else framing)
        elif self._deadline == NEVER:
            self._set_deadline(self.loop.time())
        else:
            self._progress_bytes += size

    def _set_deadline(self, now: float) -> None:
        if self._phase is HEAD:
            self._deadline = now + self.limits.head_seconds
        else:
            self._body_deadline = now + self.limits.body_seconds
            self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._progress_bytes = 0
        self._deadline = min(self._body_deadline, now + self.limits.progress_seconds)

    def _expire(self, now: float) -> None:
        if self._phase is CLOSING or (self._phase is BODY and self.cycle.response_complete):
            self.transport.abort()
        elif self._phase is IDLE:  # an answer to nothing would be taken for the answer to what is sent next
            self._phase = CLOSING
            self._deadline = now + self.limits.linger_seconds
            self.transport.close()
        elif self.flow.read_paused:
            self._set_deadline(now)  # it is we who do not read
        elif self._phase is HEAD:
            self._refuse(RefusedError(408, f"the head took longer than {self.limits.head_seconds:g} s"))
        elif now >= self._body_deadline:
            self._refuse(RefusedError(408, f"the body took longer than {self.limits.body_seconds:g} s"))
        elif self._progress_bytes >= self.limits.progress_bytes:
            self._begin_window(now)
        else:
            least = f"{self.limits.progress_bytes} bytes in {self.limits.progress_seconds:g} s"
            self._refuse(RefusedError(408, f"the body came slower than {least}"))

    def _refuse(self, error: RefusedError) -> None:
        """Answer in the application's place, after the answers to earlier requests of this connection, and close."""
        is_begun = self._phase is BODY
        cycle = self._get_cycle()
        is_answering = not is_begun and cycle is not None and not cycle.response_complete
        self._phase, self._deadline = CLOSING, NEVER
        if is_begun:
            if self.pipeline and self.pipeline[0][0] is self.cycle:
                self.pipeline.popleft()
                is_answering = True
            elif self.cycle.response_started:
                self.transport.abort()
                return
            _abandon(self.cycle)
        if is_answering:
            self._last_answer = self._render(error)
        else:
            self._end_with(self._render(error))

    def _end_with(self, answer: bytes) -> None:
        """Write the last answer, and leave the client some time to read it."""
        self._deadline = self.loop.time() + self.limits.linger_seconds
        self.transport.write(answer)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _name_large_head(self) -> RefusedError:
        limits = self.limits
        if len(self.url) > limits.target_bytes:
            return RefusedError(414, f"the target has more than the {limits.target_bytes} bytes allowed")
        if len(self.headers) > limits.header_count:
            return RefusedError(431, f"there are more than the {limits.header_count} headers allowed")
        return RefusedError(431, f"the headers have more than the {limits.header_bytes} bytes allowed")

    def _render(self, error: RefusedError) -> bytes:
        """Return a whole answer, and count it."""
        logger.debug("refused a request: %d %s", error.status, error)
        metrics.HTTP_REQUESTS.labels("OTHER", "unmatched", error.status).inc()
        request_id = secrets.token_hex(16)
        path = self.url.partition(b"?")[0].decode("latin-1")
        answer = render_at(path, error, request_id)
        headers = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        if error.status == 503:
            headers.append((b"retry-after", b"1"))
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return STATUS_LINE[error.status] + lines + b"\r\n" + bytes(answer.body)


def _name_surplus() -> RefusedError:
    return RefusedError(503, "too many connections are open")


def _abandon(cycle: RequestResponseCycle) -> None:
    """Tell the application that its client has gone; what it says from now on is not sent, and not a bug to log."""
    cycle.disconnected = True
    cycle.message_event.set()
    cycle.logger = logging.Logger("abandoned", logging.CRITICAL + 1)  # noqa: LOG001  # of no hierarchy: says nothing
