"""A reverse proxy that publishes a server below a prefix: it strips the prefix, as the server's root path expects."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.processes import Server

PREFIX = "/ml"


def start_below_prefix(server: Server) -> None:
    """Have the server started as `uvicorn app:main --root-path PREFIX`."""
    server.command = ("-m", "uvicorn", "app:main", "--port", str(server.port), "--root-path", PREFIX)


@asynccontextmanager
async def open_prefix_proxy(port: int) -> AsyncIterator[str]:
    """Yield the URL, prefix included, below which the server on this port is published."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            line = re.fullmatch(rb"(\S+) %b(/\S*) (HTTP/1\.1\r\n.*)" % PREFIX.encode(), head, re.DOTALL)
            if line is None:
                writer.write(b"HTTP/1.1 421 Misdirected Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                return
            from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
            headers = re.sub(rb"(?im)^connection:.*\r\n", b"", line[3]).replace(
                b"\r\n", b"\r\nConnection: close\r\n", 1
            )
            to_server.write(b"%b %b %b" % (line[1], line[2], headers))
            length = re.search(rb"(?im)^content-length: *(\d+)", head)
            to_server.write(await reader.readexactly(int(length[1]) if length else 0))
            writer.write(await from_server.read())
            to_server.close()
        except asyncio.IncompleteReadError:  # a browser opens connections ahead and closes them unused
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}{PREFIX}"
