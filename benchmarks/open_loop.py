"""Latency at a fixed arrival rate, however slow the server is: `python benchmarks/open_loop.py --rate 13000`.

Each request has a time at which it is due. wrk sends it on an idle connection; requests that are sent late because no
connection is idle are counted. With --overload the model is slow: the benchmark measures the capacity first, then sends
three times as many requests with its own generator. This measures latency from the time at which a request is due, and
gives up a request that finds no connection within a second.
"""

import argparse
import asyncio
import os
import re
import subprocess
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import uvloop
from predict import LUA, OTHER_CORE, ROOT, database, serve
from slow_model import write_slow_model

CONNECTIONS = 64
OVERLOAD_CONNECTIONS = 900
"""Fewer than the server's limit of connections, so that requests are refused only because of the overload."""

PATIENCE_SECONDS = 1.0

SLOW = b'{"instances": [%b]}' % b", ".join([b"[1.0, 2.0]"] * 20)
"""A body with so many rows that the limit of a second's waiting work is reached before all connections are in use."""

PACE = """
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } moment; int clock_gettime(int, moment *);")
local moment, started, due = ffi.new("moment"), nil, 0
late, latest = 0, 0
function delay()
  ffi.C.clock_gettime(1, moment)
  local now = tonumber(moment.s) * 1e3 + tonumber(moment.ns) / 1e6
  started = started or now
  due = due + 1e3 / RATE
  local wait = started + due - now
  if wait < -1 then late = late + 1 end
  latest = math.max(latest, -wait)
  return math.max(0, math.floor(wait + 0.5))
end
local thread
function setup(one) thread = one end
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("PACED %d %d %d %d %d %d %d %d %d\\n", summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout, latency:percentile(50),
    latency:percentile(99), latency:percentile(99.9), latency.max, thread:get("late"), thread:get("latest") * 1e3))
end
"""
"""Sends RATE requests per second, however slow the answers are: wrk waits for each request's time, to 1 ms."""


@dataclass(frozen=True, slots=True)
class Paced:
    """A run of wrk at a rate; `late` is the number of requests that were sent more than 1 ms late."""

    answered: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    worst_ms: float
    late: int
    latest_ms: float


def run_paced(port: int, rate: float, seconds: int, directory: Path) -> Paced:
    """Send at the rate for `seconds`."""
    script = directory / "paced.lua"
    script.write_text(f"RATE = {rate}\n{LUA}\n{PACE}")
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", script, f"http://127.0.0.1:{port}/predict"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"PACED" + r" (\d+)" * 9, output)
    assert found is not None, output
    requests, microseconds, errors, p50, p99, p999, worst, late, latest = map(int, found.groups())
    times = (p50 / 1e3, p99 / 1e3, p999 / 1e3, worst / 1e3)
    return Paced(requests - errors, microseconds / 1e6, errors, *times, late, latest / 1e3)


class Load:
    """Requests to one server at one rate, and their results: latencies in seconds by status, and lost requests."""

    def __init__(self, body: bytes) -> None:
        head = (
            b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        self.request = head % len(body) + body
        self.latencies: defaultdict[bytes, list[float]] = defaultdict(list)
        self.lost: Counter[str] = Counter()
        self.idle: deque[Client] = deque()
        self.waiting: deque[float] = deque()

    def send_due(self) -> None:
        """Send waiting requests while there are idle connections; give up those that have waited too long."""
        while self.waiting and time.perf_counter() - self.waiting[0] > PATIENCE_SECONDS:
            self.waiting.popleft()
            self.lost["given up"] += 1
        while self.waiting and self.idle:
            self.idle.popleft().send(self.waiting.popleft())

    async def run(self, port: int, rate: float, seconds: float, connections: int) -> None:
        """Send requests at `rate` for `seconds`, and wait for the last answers."""
        loop = asyncio.get_running_loop()
        clients = [
            (await loop.create_connection(lambda: Client(self), "127.0.0.1", port))[1] for _ in range(connections)
        ]
        started, due = time.perf_counter(), 0
        while (now := time.perf_counter()) < started + seconds:
            while started + due / rate <= now:
                self.waiting.append(started + due / rate)
                due += 1
            self.send_due()
            await asyncio.sleep(0.0005)
        await asyncio.sleep(PATIENCE_SECONDS)
        self.lost["not answered"] += len(self.waiting) + sum(client.due is not None for client in clients)
        for client in clients:
            client.transport.close()


class Client(asyncio.Protocol):
    """One connection, with at most one request at a time."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.due: float | None = None
        self.rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the idle connections."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class is not a subclass of asyncio's
        self.load.idle.append(self)

    def send(self, due: float) -> None:
        """Send a request that was due at this time."""
        self.due = due
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        """Take a complete answer from the stream, and send the next request that waits."""
        self.rest += data
        end = self.rest.find(b"\r\n\r\n")
        head = self.rest[:end].lower()
        if end < 0 or len(self.rest) < end + 4 + int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return
        assert self.due is not None
        self.load.latencies[head[9:12]].append(time.perf_counter() - self.due)
        self.rest, self.due = b"", None
        self.load.idle.append(self)
        self.load.send_due()


def run_load(port: int, body: bytes, rate: float, seconds: float, connections: int) -> Load:
    """Send for `seconds`, after a warm-up of one second."""
    uvloop.run(Load(body).run(port, rate, 1, connections))
    load = Load(body)
    uvloop.run(load.run(port, rate, seconds, connections))
    return load


def print_paced(name: str, rate: float, paced: Paced) -> None:
    """Print a line of the table."""
    print(
        f"| {name} | {rate:,.0f} | {paced.answered / paced.seconds:,.0f} | {paced.errors} "
        f"| {paced.late:,} ({paced.latest_ms:.1f} ms) | {paced.p50_ms:.2f} | {paced.p99_ms:.2f} | {paced.p999_ms:.2f} "
        f"| {paced.worst_ms:.2f} |",
        flush=True,
    )


def print_row(name: str, rate: float, load: Load, seconds: float) -> None:
    """Print a line of the table."""
    good = load.latencies[b"200"]
    others = [one for status, latencies in load.latencies.items() if status != b"200" for one in latencies]
    p50, p99, p999, worst = np.percentile(good, [50, 99, 99.9, 100]) * 1e3
    refused = f"{len(others):,} ({np.median(others) * 1e3:.1f} ms)" if others else "0"
    print(
        f"| {name} | {rate:,.0f} | {len(good) / seconds:,.0f} | {refused} | {sum(load.lost.values()):,} "
        f"| {p50:.2f} | {p99:.2f} | {p999:.2f} | {worst:.2f} |",
        flush=True,
    )


def main() -> None:
    """Measure each level at the rate or under overload, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=13000)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--levels", nargs="+", default=["fsync", "os", "unlogged"])
    parser.add_argument("--overload", action="store_true")
    options = parser.parse_args()
    kinds = "refused (median) | lost" if options.overload else "refused or lost | late (most)"
    print(f"| level | due/s | answered 200/s | {kinds} | p50 ms | p99 ms | p99.9 ms | max ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    with ExitStack() as stack:
        url = stack.enter_context(database())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for port, level in enumerate(options.levels, 9201):
            (work / level).mkdir()
            environment = {"DATABASE_URL": url, "DATA_DIR": str(work / level)}
            if level != "unlogged":
                environment["DURABILITY"] = level
            if options.overload:
                environment["MODEL_DIR"] = str(write_slow_model(work / "models"))
            measure_level(level, port, environment, options)


def measure_level(level: str, port: int, environment: Mapping[str, str], options: argparse.Namespace) -> None:
    """Measure one level on a server of its own."""
    with serve("unlogged" if level == "unlogged" else "app:main", port, environment, ROOT):
        if not options.overload:
            run_paced(port, options.rate, 1, Path(environment["DATA_DIR"]))
            print_paced(
                level, options.rate, run_paced(port, options.rate, options.seconds, Path(environment["DATA_DIR"]))
            )
            return
        full = run_load(port, SLOW, 1000, 5, 16)  # above capacity, with so few clients that none is refused
        capacity = len(full.latencies[b"200"]) / 5
        print_row(f"{level}, capacity", capacity, full, 5)
        over = run_load(port, SLOW, 3 * capacity, options.seconds, OVERLOAD_CONNECTIONS)
        print_row(f"{level}, three times", 3 * capacity, over, options.seconds)


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(OTHER_CORE)})
    main()
