"""Deadlines and limits of one connection: a state machine that is told the time, without clock, socket or loop."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.errors import ScorekeeperError

NEVER = math.inf


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a connection. Deadlines are checked every 0.1 s."""

    head_seconds: float = 10.0
    """For the request line and headers, from their first byte; for a connection's first request, from the connect."""
    body_seconds: float = 120.0
    """For a whole body: 8 MiB at 70 KB/s."""
    progress_seconds: float = 10.0
    progress_bytes: int = 4096
    """An incomplete body must bring this much in each `progress_seconds`."""
    keep_alive_seconds: float = 75.0
    """Between two requests: longer than load balancers keep a connection (60 s), so that they close it first."""
    write_seconds: float = 60.0
    """For a client to read an answer that is larger than the socket's buffers."""
    linger_seconds: float = 2.0
    """For a refused client to read the answer: closing while it still sends would reset the connection before that."""
    graceful_seconds: float = 20.0
    """From closing the socket to 503 for unanswered requests. With the log's drain, less than Kubernetes' 30 s."""
    target_bytes: int = 8192
    """Length of the path and query in the request line."""
    header_bytes: int = 64 * 1024
    header_count: int = 100
    connections: int = 1000
    reserved_connections: int = 50
    """Beyond `connections`, for health checks and metrics only; other requests on these are answered 503."""
    pipelined: int = 32
    """Requests that may wait for their turn on one connection."""


class RefusedError(ScorekeeperError):
    """A request that is refused before the application sees it; the connection ends with this answer."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Phase(enum.Enum):
    """What a connection waits for."""

    IDLE = enum.auto()
    """The first byte of a request."""
    HEAD = enum.auto()
    BODY = enum.auto()
    DISCARDING = enum.auto()
    """The rest of a body whose request has been answered already."""
    ANSWERING = enum.auto()
    """The application's answer; nothing is due from the client."""
    CLOSING = enum.auto()
    """The client to read the last answer; what it sends is ignored."""


IDLE, HEAD, BODY, DISCARDING, ANSWERING, CLOSING = Phase  # reading an attribute of an Enum takes 0.1 us on Python 3.11

Verdict = Literal["close", "abort"]
"""How a connection ends when a deadline has passed: `close` sends what has been written first, `abort` does not."""


class Deadlines:
    """What the client of one connection must send or read, by when, and within which limits.

    `now` is always the loop's clock in seconds. A request that arrives in one piece costs a few assignments.
    """

    __slots__ = (
        "_body_deadline",
        "_deadline",
        "_is_first",
        "_limits",
        "_progress_bytes",
        "_silent_bytes",
        "_write_deadline",
        "phase",
    )

    def __init__(self, limits: Limits, now: float) -> None:
        self.phase = IDLE
        self._limits = limits
        self._deadline = now + limits.head_seconds
        self._body_deadline = NEVER
        self._write_deadline = NEVER
        self._progress_bytes = 0
        self._silent_bytes = 0  # bytes of heads, chunk framing and trailers since the last content
        self._is_first = True

    def feed(self, size: int) -> None:
        """Note that `size` bytes have arrived and are going to be parsed."""
        self._silent_bytes += size

    def begin_head(self, waiting: int) -> None:
        """Begin a request; raise RefusedError when `waiting` requests of this connection are too many."""
        if waiting >= self._limits.pipelined:
            raise RefusedError(400, f"more than {self._limits.pipelined} requests wait on this connection")
        self.phase = HEAD
        if self._is_first:  # its deadline has run since the connection was made
            self._is_first = False
        else:
            self._deadline = NEVER

    def begin_body(self, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """End the head of a request; raise RefusedError when it is larger than allowed."""
        limits = self._limits
        if len(target) > limits.target_bytes or len(headers) > limits.header_count:
            raise self._explain_large_head(target, headers)
        if self._silent_bytes > limits.header_bytes:
            size = sum(len(name) + len(value) + len(b": \r\n") for name, value in headers)
            if size > limits.header_bytes:
                raise self._explain_large_head(target, headers)
        self.phase = BODY
        self._deadline = NEVER
        self._silent_bytes = 0

    def take_body(self) -> None:
        """Note that a piece of the body has been handed on."""
        self._silent_bytes = 0

    def end_request(self) -> None:
        """Note that the request is complete."""
        self._silent_bytes = 0
        self._deadline = NEVER
        self.phase = ANSWERING

    def end_feed(self, size: int, now: float, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Set or keep the deadline of an incomplete request; raise RefusedError for too many bytes without content."""
        if self._silent_bytes > self._limits.header_bytes and self.phase is not DISCARDING:
            if self.phase is HEAD:
                raise self._explain_large_head(target, headers)
            raise RefusedError(400, "the body has too much framing without content")
        if self._deadline == NEVER:
            self._set_deadline(now)
        else:
            self._progress_bytes += size

    def begin_idle(self, now: float) -> None:
        """Wait for the next request."""
        self.phase = IDLE
        self._deadline = now + self._limits.keep_alive_seconds

    def discard(self, now: float) -> None:
        """Give the client `linger_seconds` to end a body that nobody needs any more."""
        self.phase = DISCARDING
        self._deadline = now + self._limits.linger_seconds

    def close(self, now: float | None = None) -> None:
        """Ignore what the client sends from here on; with `now`, give it `linger_seconds` to read the last answer."""
        self.phase = CLOSING
        self._deadline = NEVER if now is None else now + self._limits.linger_seconds

    def close_written(self, now: float) -> None:
        """Ignore what the client sends: the transport closes when the client has read what was written."""
        self.phase = CLOSING
        self._deadline = now + self._limits.write_seconds

    def pause_writing(self, now: float) -> None:
        """Start the write deadline: the client does not read its answer."""
        self._write_deadline = now + self._limits.write_seconds

    def resume_writing(self) -> None:
        """Stop the write deadline: the client has read most of its answer."""
        self._write_deadline = NEVER

    def check(self, now: float, *, is_reading: bool) -> Verdict | RefusedError | None:
        """Return how the connection ends if a deadline has passed, else None. `is_reading`: reading is not paused."""
        if now >= self._write_deadline:
            return "abort"
        if now < self._deadline:
            return None
        if self.phase is CLOSING or self.phase is DISCARDING:
            return "abort"
        if self.phase is IDLE:  # an answer now would look like the answer to the client's next request
            self.close(now)
            return "close"
        if not is_reading:
            self._set_deadline(now)
            return None
        return self._find_delay(now)

    def _find_delay(self, now: float) -> RefusedError | None:
        limits = self._limits
        if self.phase is HEAD:
            return RefusedError(408, f"the head took longer than {limits.head_seconds:g} s")
        if now >= self._body_deadline:
            return RefusedError(408, f"the body took longer than {limits.body_seconds:g} s")
        if self._progress_bytes >= limits.progress_bytes:
            self._begin_window(now)
            return None
        least = f"{limits.progress_bytes} bytes in {limits.progress_seconds:g} s"
        return RefusedError(408, f"the body came slower than {least}")

    def _set_deadline(self, now: float) -> None:
        if self.phase is HEAD:
            self._deadline = now + self._limits.head_seconds
        else:
            self._body_deadline = now + self._limits.body_seconds
            self._begin_window(now)

    def _begin_window(self, now: float) -> None:
        self._progress_bytes = 0
        self._deadline = min(self._body_deadline, now + self._limits.progress_seconds)

    def _explain_large_head(self, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> RefusedError:
        limits = self._limits
        if len(target) > limits.target_bytes:
            return RefusedError(414, f"the target has more than the {limits.target_bytes} bytes allowed")
        if len(headers) > limits.header_count:
            return RefusedError(431, f"there are more than the {limits.header_count} headers allowed")
        return RefusedError(431, f"the headers have more than the {limits.header_bytes} bytes allowed")
