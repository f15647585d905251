"""Wait for the disk without blocking the event loop: the kernel's asynchronous fdatasync, or a thread."""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

logger = logging.getLogger(__name__)

OnFlushed = Callable[[OSError | None], None]
"""Called on the event loop when the data is on the disk, or with the error that says that it may not be."""


class Flusher(Protocol):
    """Bring what has been written to a file to the disk."""

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        """Start an fdatasync; `on_flushed` is called later, never from within this call."""

    def close(self) -> None:
        """Free what it holds; nothing is under way any more."""


class KernelFlusher:
    """Linux kernel AIO: no thread that would have to win the interpreter lock back from the loop. OSError: not here."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        from caio import linux_aio  # noqa: PLC0415  # only Linux has it

        self._loop = loop
        self._operation = linux_aio.Operation
        self._context = linux_aio.Context(8)
        loop.add_reader(self._context.fileno, self._on_ready)

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        """Submit an fdatasync to the kernel."""
        operation = self._operation.fdsync(descriptor)

        def finish(result: int) -> None:
            on_flushed(None if result >= 0 else OSError(-result, os.strerror(-result)))

        operation.set_callback(finish)
        try:
            self._context.submit(operation)
        except (OSError, ValueError) as error:  # caio names a refused submission ValueError
            self._loop.call_soon(on_flushed, OSError(str(error)))

    def close(self) -> None:
        """Stop listening for completions."""
        self._loop.remove_reader(self._context.fileno)

    def _on_ready(self) -> None:
        self._context.poll()
        self._context.process_events()


class ThreadFlusher:
    """One thread that calls fdatasync: works everywhere."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fdatasync")

    def flush(self, descriptor: int, on_flushed: OnFlushed) -> None:
        """Have the thread do it."""
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


sync_file = getattr(os, "fdatasync", os.fsync)
"""fdatasync where there is one; macOS has only fsync."""


async def open_flusher(directory: Path) -> Flusher:
    """Return the kernel's way if it works on the file system of `directory`, else the thread."""
    loop = asyncio.get_running_loop()
    try:
        flusher = KernelFlusher(loop)
    except (ImportError, OSError, ValueError) as error:
        logger.info("fdatasync by a thread: kernel AIO is not available (%s)", error)
        return ThreadFlusher(loop)
    refusal = await _try_flush(flusher, directory)
    if refusal is None:
        return flusher
    flusher.close()
    logger.info("fdatasync by a thread: kernel AIO does not work in %s (%s)", directory, refusal)
    return ThreadFlusher(loop)


async def _try_flush(flusher: Flusher, directory: Path) -> OSError | None:
    path = directory / f"probe-{os.getpid()}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, b"probe")
        done: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        flusher.flush(descriptor, done.set_result)
        async with asyncio.timeout(10):
            return await done
    except TimeoutError:
        return OSError("no answer")
    finally:
        os.close(descriptor)
        path.unlink()
