"""Rows per second from the spool into PostgreSQL after an outage: `python benchmarks/drain.py`.

A spool is filled as a busy server fills it, 32 rows a group; then a shipper, on the first core, brings it into an empty
database with the full schema, PostgreSQL on the second core. Also printed: how the process's memory grew meanwhile.
"""

import argparse
import asyncio
import os
import resource
import tempfile
import time
from pathlib import Path

from predict import database

from app.database.migrate import upgrade_schema
from app.database.pool import open_pool
from app.prediction_log.log import PredictionLog, open_log
from app.prediction_log.partitions import make_partitions_ahead
from app.prediction_log.record import Record, encode_records, make_prediction_ids, read_clock_ms, time_from_ms

GROUP_ROWS = 32
NAMES = ("car_value", "debt_to_income_ratio", "loan_length", "driver_tenure", "size_of_downpayment")


async def fill(log: PredictionLog, rows: int) -> None:
    """Append `rows` rows in groups while PostgreSQL is away."""
    for _ in range(rows // GROUP_ROWS):
        clock_ms = read_clock_ms()
        records = [
            Record(
                prediction_id=prediction_id,
                created_at=time_from_ms(clock_ms),
                model_name="car-loan",
                model_version="1",
                predicted_class="1",
                score=0.9312298893928528,
                probabilities=[0.0687701106071472, 0.9312298893928528],
                features=dict(zip(NAMES, (12638.0, 0.4879263073, 21.0, 4.2246275, 10.0), strict=True)),
                external_id=None,
                request_id="e19c8b226956e1e1000000000000035f",
            )
            for prediction_id in make_prediction_ids(clock_ms, GROUP_ROWS)
        ]
        await log.store(encode_records(records))


async def measure(url: str, directory: Path, rows: int) -> None:
    """Fill, then drain, then print."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    async with open_pool(nowhere, 1) as pool, open_log(pool, "os", directory, 1 << 40, print) as log:
        await fill(log, rows)
    await upgrade_schema(url)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with open_pool(url, 2) as pool:
        await make_partitions_ahead(pool, timeout=10)
        started = time.monotonic()
        cpu = time.process_time()
        async with open_log(pool, "os", directory, 1 << 40, print) as log:
            while await pool.fetchval("SELECT count(*) FROM prediction_log") < rows:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        seconds = time.monotonic() - started
        used = time.process_time() - cpu
        stored = await pool.fetchval("SELECT count(*) FROM prediction_log")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    print(f"{stored:,} of {rows:,} rows in {seconds:.1f} s: {stored / seconds:,.0f} rows/s, ", end="")
    print(f"{used / stored * 1e6:.1f} us of the shipper's CPU per row, memory grew by {grown / 1024:.0f} MiB")


def main() -> None:
    """Measure once; the order of magnitude is the point, and the database is new each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320_000)
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    with database() as url, tempfile.TemporaryDirectory() as directory:
        asyncio.run(measure(url, Path(directory), options.rows))


if __name__ == "__main__":
    main()
