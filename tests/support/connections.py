"""Servers without PostgreSQL, and connections to them of which the test decides every byte."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from app.server.deadlines import Limits
from tests.support.processes import ROOT, WAIT_SECONDS, find_free_port, wait_until

BODY = b'{"features": [1, 2, 3, 4, 5]}'
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass
class Answer:
    """One answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: Any


class Process:
    """A server on a free port; PostgreSQL is away, so that only what it does by itself is seen."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self.port = find_free_port()
        self.database_port = find_free_port()
        self.log = directory / "server.log"
        options = ["--port", str(self.port)]
        command = ["-m", "app", "serve", *options]
        if limits is not None:
            call = f"serve('127.0.0.1', {self.port}, limits={limits!r})"
            command = ["-c", f"from app.server.deadlines import Limits; from app.server.serve import serve; {call}"]
        environment = {
            "DATA_DIR": str(directory / "data"),
            "DATABASE_URL": f"postgresql://user:password@127.0.0.1:{self.database_port}/nowhere",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log
            )

    async def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            async with httpx2.AsyncClient() as client:
                return (await client.get(f"http://127.0.0.1:{self.port}/health/ready")).status_code == 200
        except httpx2.TransportError:
            return False

    async def wait_until_ready(self) -> None:
        await wait_until(self.is_ready, what=self.log.read_text)

    async def wait(self) -> int:
        return await asyncio.to_thread(self.process.wait, WAIT_SECONDS)


@contextmanager
def run_process(directory: Path, limits: Limits | None = None) -> Iterator[Process]:
    process = Process(directory, limits)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()


class Client:
    """A connection of which every byte is decided by the test."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opened_at = time.monotonic()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read_answer(self) -> Answer:
        async with asyncio.timeout(WAIT_SECONDS):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
            body = await self.reader.readexactly(int(headers["content-length"]))
        is_json = "json" in headers["content-type"]
        return Answer(int(lines[0].split()[1]), headers, json.loads(body) if is_json else body)

    async def read_end(self) -> float:
        """Read the end of the connection, before which nothing may come; return the age of the connection."""
        async with asyncio.timeout(WAIT_SECONDS):
            assert await self.reader.read() == b""
        return time.monotonic() - self.opened_at


@asynccontextmanager
async def connect(port: int, limit: int = 2**16) -> AsyncIterator[Client]:
    """Connect; more than twice `limit` bytes are not taken from the socket before they are read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield Client(reader, writer)
    finally:
        writer.transport.abort()
