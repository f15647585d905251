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

ROOT = Path(__file__).parent.parent


class Server:
    """A server process that may be started again after it has ended; its output is kept in `log`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, **environment}
        self.command: tuple[str, ...] = ("-m", "app", "serve", "--port", str(self.port), "--no-access-log")
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
            await wait_until(self.is_ready, seconds=60, what=lambda: f"the server is ready: {self.log.decode()}")

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
        async with asyncio.timeout(60):
            status = await self.process.wait()
            await self._reader
        return status

    async def kill(self) -> None:
        """End the process at once, if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.wait()


async def wait_until(
    condition: Callable[[], Awaitable[T | None]],
    *,
    seconds: float = 15,
    what: Callable[[], str] = lambda: "the condition",
) -> T:
    """Return the first truthy value of `condition`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what()}")
        await asyncio.sleep(0.02)


def find_free_port() -> int:
    """Return a port of the loopback interface on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
