"""Set up logging for the whole process: lines for people or JSON for machines, on standard error."""

import logging
import logging.config
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import msgspec

from app import metrics
from app.settings import LogFormat

FORMATTERS = {
    "console": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"},
    "json": {
        "()": "pythonjsonlogger.json.JsonFormatter",
        "fmt": "%(levelname)s %(name)s %(message)s",
        "rename_fields": {"levelname": "level", "name": "logger"},
        "timestamp": True,
    },
}


def configure_logging(log_format: LogFormat) -> None:
    """Send the records of `app` and uvicorn through one handler; other libraries log from WARNING up."""
    uvicorn_logger = {"level": "INFO", "handlers": [], "propagate": True}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": FORMATTERS,
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": log_format}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "app": {"level": "INFO"},
                "uvicorn": uvicorn_logger,
                "uvicorn.error": uvicorn_logger,
                "uvicorn.access": {**uvicorn_logger, "propagate": False},  # AccessLog replaces it
            },
        }
    )


Client = tuple[str, int] | None
"""Host and port of the client that sent a request; None if unknown."""

STDERR = 2

WRITE_SECONDS = 0.1
"""How long a line of the access log waits to be written together with other lines."""

PIPE_BYTES = 4096
"""The most that a pipe takes atomically (PIPE_BUF), so that lines of other writers never split ours."""

MAX_WAITING_LINES = 20_000
"""Lines that may wait for standard error, about 3 MiB; further lines are dropped and counted."""

LAST_LINES_SECONDS = 1.0
"""How long the server waits at the stop for the last lines to be written."""


class AccessLog:
    """Writes one line per request to standard error, where all other lines go.

    `logging` takes 9 us for a line, a third of a prediction, and blocks the event loop when nobody reads the output.
    Here a line costs about 1 us, and a thread writes the lines of a tenth of a second together. Bounded: while
    MAX_WAITING_LINES wait, new lines are dropped and counted.
    """

    def __init__(self, log_format: LogFormat, descriptor: int = STDERR) -> None:
        self._spell = _Console().spell if log_format == "console" else _spell_json
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
        self._thread.start()

    def write(
        self, client: Client, method: str, target: bytes, status: int, seconds: float | None, request_id: bytes
    ) -> None:
        """Queue the line of an answered request."""
        if len(self._waiting) >= MAX_WAITING_LINES:
            metrics.ACCESS_LOG_DROPPED.inc()
            return
        self._waiting.append(self._spell(client, method, target, status, seconds, request_id))

    def close(self) -> None:
        """Write the waiting lines, for at most LAST_LINES_SECONDS."""
        self._stopping.set()
        self._thread.join(LAST_LINES_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(WRITE_SECONDS):
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        chunk = b""
        for _ in range(len(self._waiting)):
            line = self._waiting.popleft()
            if chunk and len(chunk) + len(line) > PIPE_BYTES:
                self._write_chunk(chunk)
                chunk = b""
            chunk += line
        if chunk:
            self._write_chunk(chunk)

    def _write_chunk(self, chunk: bytes) -> None:
        try:
            while chunk:
                chunk = chunk[os.write(self._descriptor, chunk) :]
        except OSError:  # the reader of the pipe has closed it
            metrics.ACCESS_LOG_DROPPED.inc(chunk.count(b"\n"))


@asynccontextmanager
async def open_access_log(log_format: LogFormat, *, is_wanted: bool) -> AsyncIterator[AccessLog | None]:
    """Open the access log until exit; None when it is not wanted."""
    access_log = AccessLog(log_format) if is_wanted else None
    try:
        yield access_log
    finally:
        if access_log is not None:
            access_log.close()


class _Console:
    """Formats lines for people; formats the time once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._spelt = ""

    def spell(
        self, client: Client, method: str, target: bytes, status: int, seconds: float | None, request_id: bytes
    ) -> bytes:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._spelt = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        host = f"{client[0]}:{client[1]}" if client else "-"
        took = "-" if seconds is None else f"{seconds * 1000:.1f} ms"
        line = (
            f"{self._spelt},{int(now % 1 * 1000):03d} INFO    app.access: {host} "
            f'"{method} {target.decode("ascii", "backslashreplace")}" {status} {took} {request_id.decode()}\n'
        )
        return line.encode()


class _Line(msgspec.Struct, gc=False):
    """A line in JSON: the members that all log lines have, and those of a request."""

    timestamp: datetime
    level: str
    logger: str
    message: str
    client: str | None
    method: str
    target: str
    status: int
    seconds: float | None
    request_id: str


_encode = msgspec.json.Encoder().encode


def _spell_json(
    client: Client, method: str, target: bytes, status: int, seconds: float | None, request_id: bytes
) -> bytes:
    host = f"{client[0]}:{client[1]}" if client else None
    path = target.decode("ascii", "backslashreplace")
    line = _Line(
        datetime.now(UTC),
        "INFO",
        "app.access",
        f"{method} {path} {status}",
        host,
        method,
        path,
        status,
        seconds,
        request_id.decode(),
    )
    return _encode(line) + b"\n"
