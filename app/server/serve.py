"""`scorekeeper serve`: uvicorn with our deadlines and limits for connections, and a shutdown that answers 503."""

import asyncio
import gc
import logging
import resource
import socket
from dataclasses import replace

from uvicorn import Server

from app.server.connection import GuardedConfig, GuardedProtocol
from app.server.deadlines import Limits
from app.tasks import own_task

logger = logging.getLogger(__name__)

GC_THRESHOLD = 50_000
"""Container objects between two looks for cycles, which requests do not make: 2 us less per request than with 700."""

OTHER_FILES = 256
"""File descriptors that the process needs beside connections: the spool, PostgreSQL, models, and some spare."""


def serve(host: str, port: int, *, root_path: str = "", limits: Limits | None = None) -> None:
    """Serve the application until a signal ends it, which then ends the process as signals do.

    `root_path` is the prefix that a proxy takes away before it passes a request on.
    """
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    GuardedServer(GuardedConfig(host, port, limits=fit_limits(limits or Limits()), root_path=root_path)).run()


def fit_limits(limits: Limits) -> Limits:
    """Raise the limit of open files as far as `limits` needs; accept fewer connections where that is not allowed."""
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
    """Looks at the deadlines of all connections in turn, which costs a request nothing, and never ends with a 500."""

    config: GuardedConfig

    async def on_tick(self, counter: int) -> bool:
        """Look at the deadlines, ten times a second while the server runs."""
        self._check_deadlines()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is under way; what is not answered at the end of the graceful time is answered 503."""
        # When this task dies, uvicorn's own time-out still ends the shutdown, a second after ours.
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
        await asyncio.Event().wait()  # until the shutdown, which owns this task, is over

    def _check_deadlines(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.check(now)
