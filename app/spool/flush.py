"""Sync data to the disk without blocking the event loop: by kernel AIO where it works, else in a thread."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from app.spool.disk import sync_file

if TYPE_CHECKING:
    from caio.abstract import AbstractOperation

logger = logging.getLogger(__name__)

OnFlushed = Callable[[OSError | None], None]
"""Called on the event loop with None when the data is on the disk, or with an error when it may not be."""


class Flusher(Protocol):
    """Syncs the written data of a file to the disk."""

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        """Start an fdatasync; `on_flushed` is called later, never during this call."""

    def close(self) -> None:
        """Free its resources. No flush may be in progress."""


AIO_EVENTS = 8
"""Most operations in progress at a time; the journal has one."""

CAIO_ERRORS = (OSError, ValueError, OverflowError, SystemError)
"""What caio raises for errno: ValueError for EBADF, OverflowError for EAGAIN, SystemError for most others."""


class KernelFlusher:
    """Flush by Linux kernel AIO. A thread would be slower: it would compete with the loop for the interpreter lock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from caio import linux_aio  # noqa: PLC0415  # only Linux has it

        self._loop = loop
        self._operation = linux_aio.Operation
        self._context = linux_aio.Context(AIO_EVENTS)
        loop.add_reader(self._context.fileno, self._on_ready)

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        """Submit an fdatasync to the kernel."""
        self._submit(self._operation.fdsync(descriptor), on_flushed)

    def _submit(self, operation: "AbstractOperation", on_flushed: OnFlushed) -> None:
        operation.set_callback(lambda result: on_flushed(explain_result(result)))
        try:
            taken = self._context.submit(operation)
        except CAIO_ERRORS as error:
            self._loop.call_soon(on_flushed, OSError(str(error)))
        else:
            if taken != 1:
                self._loop.call_soon(on_flushed, OSError("the kernel did not accept the operation"))

    def close(self) -> None:
        """Stop listening for completions."""
        self._loop.remove_reader(self._context.fileno)

    def _on_ready(self) -> None:
        with suppress(BlockingIOError):  # an earlier call has already processed this completion
            self._context.poll()
        while self._context.process_events():
            pass


def explain_result(result: int) -> OSError | None:
    """Return the error of a completed operation; caio 0.12 gives it as an unsigned number, 2**64 - errno."""
    code = 2**64 - result if result >= 2**63 else -result
    return OSError(code, os.strerror(code)) if code > 0 else None


class ThreadFlusher:
    """Flush by fdatasync in a thread, which works everywhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fdatasync")

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        """Start an fdatasync in the thread."""
        self._executor.submit(self._flush, descriptor, on_flushed)

    def _flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        error: OSError | None = None
        try:
            sync_file(descriptor)
        except OSError as caught:
            error = caught
        self._loop.call_soon_threadsafe(on_flushed, error)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=True)


TRY_SECONDS = 10.0
"""Limit for the first flush, which shows whether kernel AIO works."""


async def open_flusher(descriptor: int) -> Flusher:
    """Return a KernelFlusher if it works on the file system of an open file, else a ThreadFlusher."""
    loop = asyncio.get_running_loop()
    try:
        flusher = KernelFlusher(loop)
    except (ImportError, *CAIO_ERRORS) as error:
        logger.info("fdatasync runs in a thread: kernel AIO is not available (%s)", error)
        return ThreadFlusher(loop)
    refusal = await _try_flush(flusher, descriptor)
    if refusal is None:
        return flusher
    flusher.close()
    logger.info("fdatasync runs in a thread: kernel AIO does not work for the spool (%s)", refusal)
    return ThreadFlusher(loop)


async def _try_flush(flusher: Flusher, descriptor: int) -> OSError | None:
    done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
    flusher.flush(descriptor, lambda error: None if done.done() else done.set_result(error))
    try:
        async with asyncio.timeout(TRY_SECONDS):
            return await done
    except TimeoutError:
        return OSError("no answer")
