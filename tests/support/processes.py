"""Real uvicorn processes for the tests in which a process is the point."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import httpx2

T = TypeVar("T")

ROOT = Path(__file__).parents[2]

WAIT_SECONDS = 60.0
"""For whatever a test waits for: far more than it takes, so that a busy machine fails no test."""


class Server:
    """A server process that may be started again after it has ended; its output is kept in `log`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, **environment}
        self.command: tuple[str, ...] = ("-m", "app", "serve", "--port", str(self.port))
        self.process: asyncio.subprocess.Process | None = None
        self.log = b""
        self._reader: asyncio.Task[None] | None = None

    async def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is ready unless told not to."""
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self.command,
            env=self.environment,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self._reader = asyncio.create_task(self._read())
        if wait:
            await wait_until(self.is_ready, what=lambda: f"the server is ready: {self.log.decode()}")

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.log += line

    async def is_ready(self) -> bool:
        """Tell whether the server says that it is ready."""
        try:
            async with httpx2.AsyncClient() as client:
                return (await client.get(f"{self.url}/health/ready")).status_code == 200
        except httpx2.TransportError:
            return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait until the process has ended and all its output is read; return its status."""
        assert self.process is not None
        assert self._reader is not None
        async with asyncio.timeout(WAIT_SECONDS):
            status = await self.process.wait()
            await self._reader
        return status

    async def kill(self) -> None:
        """End the process at once, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.wait()


async def start_app(*arguments: str, environment: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start `python -m app` with these arguments; its output, errors included, is to be read from its stdout."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", *arguments),
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        # Whoever runs the tests in the background of a shell has them, and what they start, ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the child has one thread
    )


async def run_app(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run `python -m app` to its end; return its status and output."""
    process = await start_app(*arguments, environment=environment)
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def wait_until(
    condition: Callable[[], Awaitable[T | None]],
    *,
    seconds: float = WAIT_SECONDS,
    what: Callable[[], str] = lambda: "the condition",
) -> T:
    """Return the first truthy value of `condition`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what()}")
        await asyncio.sleep(0.02)


def find_free_port() -> int:
    """Return a port of the loopback interface on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
