"""Latency at a fixed arrival rate, whatever the server does: `python benchmarks/open_loop.py`.

Requests are sent at their times on 64 connections, pipelined where a connection is still busy, and a latency is counted
from the time at which its request was due: a server that stalls is charged for everyone who had to wait.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter, deque
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import numpy as np
import uvloop
from predict import OTHER_CORE, ROOT, database, serve

CONNECTIONS = 64
BODY = b'{"features": [12638.0, 0.4879, 21.0, 4.2246, 10.0]}'
REQUEST = (
    b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
    % (len(BODY), BODY)
)


class Client(asyncio.Protocol):
    """One connection: sends, and times the answers in their order."""

    def __init__(self, latencies: list[float], statuses: Counter[bytes]) -> None:
        self.latencies = latencies
        self.statuses = statuses
        self.due: deque[float] = deque()
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is of no asyncio class

    def send(self, due: float) -> None:
        """Send a request that was due at this time."""
        self.due.append(due)
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        """Take whole answers off the stream."""
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            head = self.rest[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(self.rest) < end + 4 + length:
                return
            self.rest = self.rest[end + 4 + length :]
            self.statuses[head[9:12]] += 1
            self.latencies.append(time.perf_counter() - self.due.popleft())


async def load(port: int, rate: float, seconds: float) -> tuple[list[float], Counter[bytes], int]:
    """Send at `rate` for `seconds`; return latencies in seconds, statuses, and how many were never answered."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    statuses: Counter[bytes] = Counter()
    clients = [
        (await loop.create_connection(lambda: Client(latencies, statuses), "127.0.0.1", port))[1]
        for _ in range(CONNECTIONS)
    ]
    started, sent = time.perf_counter(), 0
    while (now := time.perf_counter()) < started + seconds:
        while (due := started + sent / rate) <= now:
            clients[sent % CONNECTIONS].send(due)
            sent += 1
        await asyncio.sleep(0.0005)
    await asyncio.sleep(1)
    lost = sum(len(client.due) for client in clients)
    for client in clients:
        client.transport.close()
    return latencies, statuses, lost


def main() -> None:
    """Measure each level at the rate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=4000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--levels", nargs="+", default=["fsync", "os", "database"])
    options = parser.parse_args()
    print("| level | rate | answered 200 | other | not answered | p50 ms | p99 ms | p99.9 ms | max ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    with ExitStack() as stack:
        url = stack.enter_context(database())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for port, level in enumerate(options.levels, 9201):
            environment = {"DATABASE_URL": url, "DATA_DIR": str(work / level), "DURABILITY": level}
            with serve("app:main", port, environment, ROOT):
                uvloop.run(load(port, options.rate, 2))
                latencies, statuses, lost = uvloop.run(load(port, options.rate, options.seconds))
            p50, p99, p999, worst = np.percentile(latencies, [50, 99, 99.9, 100]) * 1e3
            others = sum(statuses.values()) - statuses[b"200"]
            print(
                f"| {level} | {options.rate:,.0f} | {statuses[b'200']:,} | {others:,} | {lost:,} "
                f"| {p50:.2f} | {p99:.2f} | {p999:.2f} | {worst:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(OTHER_CORE)})
    main()
