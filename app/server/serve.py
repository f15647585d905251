"""`scorekeeper serve`: uvicorn with our deadlines and limits for connections, and a shutdown that answers 503."""

import asyncio
import gc
import logging
import resource
import socket
from dataclasses import replace

from uvicorn import Server

from app import metrics
from app.api.predict import PATH
from app.server.connection import GuardedConfig, GuardedProtocol
from app.server.deadlines import Limits
from app.server.direct import CLIENT_GONE
from app.tasks import own_task

logger = logging.getLogger(__name__)

GC_THRESHOLD = 50_000
"""Container objects between two searches for cycles; requests make no cycles. Saves 2 us per request against 700."""

OTHER_FILES = 256
"""File descriptors that the process needs beside connections: the spool, PostgreSQL, models, and some spare."""


def serve(host: str, port: int, *, root_path: str = "", limits: Limits | None = None) -> None:
    """Serve the application until a signal; after the shutdown the signal ends the process as usual.

    `root_path` is the prefix that a proxy removes before it forwards a request.
    """
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    metrics.begin_request_series("POST", PATH, [CLIENT_GONE])
    GuardedServer(GuardedConfig(host, port, limits=fit_limits(limits or Limits()), root_path=root_path)).run()


def fit_limits(limits: Limits) -> Limits:
    """Raise the limit of open files to what `limits` needs; return fewer connections if that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = limits.reserved_connections + OTHER_FILES
    wanted = limits.connections + others
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return limits
    fewer = replace(limits, connections=max(1, allowed - others))
    logger.warning("only %d files may be open: %d connections are accepted", allowed, fewer.connections)
    return fewer


class GuardedServer(Server):
    """Checks all deadlines on a timer, at no cost per request; its shutdown answers 503, never 500."""

    config: GuardedConfig

    async def on_tick(self, counter: int) -> bool:
        """Check the deadlines; uvicorn calls this ten times a second."""
        self._check_deadlines()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish running requests; answer 503 to those that have no answer after `graceful_seconds`."""
        # If this task fails, uvicorn's own timeout still ends the shutdown, a second after ours.
        async with own_task(self._bound_shutdown(), "deadlines", lambda _: None):
            await super().shutdown(sockets)

    async def _bound_shutdown(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.config.limits.graceful_seconds
        while loop.time() < end:
            self._check_deadlines()
            await asyncio.sleep(0.1)
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.give_up()
        await asyncio.Event().wait()  # until `shutdown` cancels this task

    def _check_deadlines(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.check(now)
