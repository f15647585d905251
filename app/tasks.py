"""Background tasks with an owner: the server never runs without one, so a task that ends by itself stops it."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

OnTaskDeath = Callable[[str], None]
"""Called with the name of a task that ended before its owner cancelled it."""


@asynccontextmanager
async def own_task(
    coroutine: Coroutine[Any, Any, None], name: str, on_death: OnTaskDeath
) -> AsyncIterator["asyncio.Task[None]"]:
    """Run `coroutine` as a task until exit, then cancel it and wait for its end."""
    stopping = False

    def report(task: "asyncio.Task[None]") -> None:
        if not stopping:
            error = None if task.cancelled() else task.exception()
            logger.error("background task %s ended by itself", name, exc_info=error)
            on_death(name)

    task = asyncio.create_task(coroutine, name=name)
    task.add_done_callback(report)
    try:
        yield task
    finally:
        stopping = True
        task.cancel()
        await asyncio.wait([task])


async def call_in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call a blocking function in a thread. When cancelled, wait for its end first: it never outlives this call."""
    return await _finish(asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named)))


async def call_in(threads: Executor, function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Do the same in threads of one's own: asyncio's are shared, so that a call may wait for the work of others."""
    call = partial(function, *arguments, **named)
    return await _finish(asyncio.get_running_loop().run_in_executor(threads, call))


async def _finish(call: "asyncio.Future[T]") -> T:
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


def stop_server(name: str) -> None:
    """Stop this process with SIGTERM, as an operator would; its supervisor starts it again."""
    logger.error("stopping the server because background task %s ended", name)
    os.kill(os.getpid(), signal.SIGTERM)
