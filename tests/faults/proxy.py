"""A TCP proxy before PostgreSQL that can be slow, silent, or break a connection when PostgreSQL has just answered."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

COMMITTED = re.compile(rb"INSERT 0 [1-9].*Z\x00\x00\x00\x05I", re.DOTALL)
"""CommandComplete of an insert of rows and then ReadyForQuery: the transaction has been committed."""

CHUNK_BYTES = 64 * 1024

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of no time: close() sends RST."""


class Proxy:
    """Forwards a TCP port of the loopback interface to PostgreSQL's Unix socket. Faults hold from when they are set."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.port = 0
        self.delay_seconds = 0.0
        self.bytes_per_second: float | None = None
        self.resets_left = 0
        self.resets = 0
        self._is_open = asyncio.Event()
        self._is_open.set()

    def blackhole(self) -> None:
        """Keep connections and lose what they carry, until `restore`, when what is under way arrives after all."""
        self._is_open.clear()

    def restore(self) -> None:
        """Forward at full speed again."""
        self.delay_seconds, self.bytes_per_second, self.resets_left = 0.0, None, 0
        self._is_open.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection both ways until either side closes it."""
        await self._is_open.wait()
        try:
            from_server, to_server = await asyncio.open_unix_connection(str(self.target))
        except OSError:
            _reset(writer)
            return
        directions = (
            asyncio.create_task(self._forward(reader, to_server)),
            asyncio.create_task(self._forward_answers(from_server, writer)),
        )
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            to_server.close()
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._pass(writer, data)

    async def _forward_answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.resets_left and COMMITTED.search(data):
                self.resets_left -= 1
                self.resets += 1
                _reset(writer)
                return
            await self._pass(writer, data)

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        seconds = self.delay_seconds + (len(data) / self.bytes_per_second if self.bytes_per_second else 0.0)
        if seconds:
            await asyncio.sleep(seconds)
        await self._is_open.wait()
        writer.write(data)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


@asynccontextmanager
async def open_proxy(target: Path) -> AsyncIterator[Proxy]:
    """Listen on a free port until exit, which ends every connection."""
    proxy = Proxy(target)
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_serve_quietly(proxy, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _serve_quietly(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await proxy.serve(reader, writer)
    except OSError:
        _reset(writer)
