"""Owned background tasks: a task that dies by itself stops the server instead of leaving it half alive."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

OnTaskDeath = Callable[[str], None]
"""Called with the name of a task that ended although nobody had asked it to."""


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
    """Call what blocks in a thread, to its end even when cancelled: nothing goes on behind the back of the caller."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **named))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise


def stop_server(name: str) -> None:
    """End this process the orderly way, as if the operator had: its supervisor starts it again."""
    logger.error("stopping the server because %s is gone", name)
    os.kill(os.getpid(), signal.SIGTERM)
