"""Labels per second through POST /labels as NDJSON, for stored predictions: `python benchmarks/labels.py`.

The server runs on the first core, PostgreSQL and the clients on the second; the bodies are made in advance. Each round
stores predictions, labels each of them once, then corrects each label once: first in the order of the predictions, then
in random order.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args
from uuid import UUID

import asyncpg
import httpx2
import msgspec
from predict import ROOT, database, read_cpu_seconds, serve

from app.prediction_log.queries import insert_rows, make_partitions
from app.prediction_log.record import Record, encode_records, make_prediction_ids, read_clock_ms, time_from_ms
from app.quality.labels import Outcome

PORT = 9110
TABLES = ("prediction_label", "prediction_label_history")
FEATURES = {"car_value": 12638.0, "debt_to_income_ratio": 0.4879, "loan_length": 21.0, "driver_tenure": 4.2246}


@dataclass(frozen=True, slots=True)
class Round:
    """The time and CPU time for taking some labels."""

    seconds: float
    server_seconds: float
    postgres_seconds: float
    counts: dict[str, int]


async def store_predictions(connection: asyncpg.Connection, count: int) -> list[UUID]:
    """Store rows of the demo model in the same way as the log; return their ids."""
    ids = []
    for start in range(0, count, 1000):
        clock_ms = read_clock_ms()
        some = make_prediction_ids(clock_ms, min(1000, count - start))
        records = [
            Record(key, time_from_ms(clock_ms), "car-loan", "1", "1", 0.93, [0.07, 0.93], FEATURES, None, "benchmark")
            for key in some
        ]
        await insert_rows(connection, [rows.payload for rows in encode_records(records)], timeout=30)
        ids += some
    return ids


def make_bodies(ids: Sequence[UUID], label: int, observed_at: datetime, batch: int) -> list[bytes]:
    """Make request bodies that label each of `ids` once, `batch` labels in each body."""
    lines = [
        msgspec.json.encode(
            {"prediction_id": key, "label": label, "observed_at": observed_at + timedelta(milliseconds=at)}
        )
        for at, key in enumerate(ids)
    ]
    return [b"\n".join(lines[start : start + batch]) for start in range(0, len(lines), batch)]


async def send(bodies: Sequence[bytes], clients: int) -> dict[str, int]:
    """Post all bodies on `clients` connections; return the sums of the answered counts."""
    waiting, sums = list(reversed(bodies)), dict[str, int]()

    async def work(client: httpx2.AsyncClient) -> None:
        while waiting:
            answer = await client.post(
                "/labels", content=waiting.pop(), headers={"Content-Type": "application/x-ndjson"}
            )
            counts = answer.raise_for_status().json()
            for outcome in ("received", *get_args(Outcome)):
                sums[outcome] = sums.get(outcome, 0) + counts[outcome]

    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{PORT}", timeout=120) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return sums


async def measure(bodies: Sequence[bytes], clients: int, server: int, postmaster: int) -> Round:
    """Send the bodies, and read the clocks before and after."""
    started, server_before, postgres_before = time.monotonic(), read_cpu_seconds(server), read_tree_seconds(postmaster)
    counts = await send(bodies, clients)
    seconds = time.monotonic() - started
    server_seconds, postgres_seconds = read_cpu_seconds(server), read_tree_seconds(postmaster)
    return Round(seconds, server_seconds - server_before, postgres_seconds - postgres_before, counts)


def read_tree_seconds(pid: int) -> float:
    """Return the user and system time of a process and its children, in seconds."""
    children = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and read_parent(path) == pid]
    return read_cpu_seconds(pid) + sum(read_cpu_seconds(child) for child in children)


def read_parent(process: Path) -> int | None:
    """Return the pid of a process's parent, None when the process has just ended."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return None


def report(name: str, one: Round) -> None:
    """Print a line of the table."""
    labels = one.counts["received"]
    counts = ", ".join(
        f"{count:,} {outcome}" for outcome, count in one.counts.items() if count and outcome != "received"
    )
    print(
        f"| {name} | {labels / one.seconds:,.0f} | {one.server_seconds / labels * 1e6:.1f} "
        f"| {one.postgres_seconds / labels * 1e6:.1f} | {counts} |",
        flush=True,
    )


async def run(url: str, server: int, options: argparse.Namespace) -> None:
    """Measure all rounds."""
    connection = await asyncpg.connect(url)
    postmaster = read_parent(Path(f"/proc/{await connection.fetchval('SELECT pg_backend_pid()')}"))
    assert postmaster is not None
    today = datetime.now(UTC).date()
    for back in range(0, options.days, 200):
        await make_partitions(connection, today - timedelta(days=back + 199), today - timedelta(days=back))
    print("| labels | labels/s | server CPU µs/label | PostgreSQL CPU µs/label | outcomes |")
    print("|---|---|---|---|---|")
    for number in range(options.rounds):
        for order in ("in order", "shuffled"):
            ids = await store_predictions(connection, options.labels)
            if order == "shuffled":
                random.Random(number).shuffle(ids)
            await connection.execute("CHECKPOINT")
            for name, label, age in (("new", 0, timedelta(days=2)), ("corrected", 1, timedelta(days=1))):
                bodies = make_bodies(ids, label, datetime.now(UTC) - age, options.batch)
                report(f"{name}, {order}", await measure(bodies, options.clients, server, postmaster))
    rows = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES]
    print(f"stored: {rows[0]:,} labels in force, {rows[1]:,} in the history")
    await connection.close()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=100_000, help="labels of each kind in each round")
    parser.add_argument("--batch", type=int, default=5_000, help="labels in one body")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--days", type=int, default=0, help="days that have partitions, in steps of 200")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    with database() as url, tempfile.TemporaryDirectory() as directory:
        environment = {"DATABASE_URL": url, "DATA_DIR": directory}
        with serve("app:main", PORT, environment, ROOT) as server:
            asyncio.run(run(url, server, options))


if __name__ == "__main__":
    main()
