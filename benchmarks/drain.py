"""Rows per second from the spool into PostgreSQL after an outage: `python benchmarks/drain.py`.

The spool is filled as by a busy server, 32 rows per group. Then a shipper on the first core ships it to an empty
database on the second core, in turn with the full schema and without the trigger that fills the quality ledger. Also
printed: the medians, and the growth of the process's memory.
"""

import argparse
import asyncio
import os
import random
import resource
import statistics
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
    """Append `rows` rows in groups while PostgreSQL is unreachable; scores vary like a calibrated model's."""
    chance = random.Random(0)
    for _ in range(rows // GROUP_ROWS):
        clock_ms = read_clock_ms()
        scores = [chance.betavariate(0.7, 0.7) for _ in range(GROUP_ROWS)]
        records = [
            Record(
                prediction_id=prediction_id,
                created_at=time_from_ms(clock_ms),
                model_name="car-loan",
                model_version="1",
                predicted_class="1" if score >= 0.5 else "0",
                score=score,
                probabilities=[1 - score, score],
                features=dict(zip(NAMES, (12638.0, 0.4879263073, 21.0, 4.2246275, 10.0), strict=True)),
                external_id=None,
                request_id="e19c8b226956e1e1000000000000035f",
            )
            for prediction_id, score in zip(make_prediction_ids(clock_ms, GROUP_ROWS), scores, strict=True)
        ]
        await log.store(encode_records(records))


async def measure(url: str, directory: Path, rows: int, *, ledger: bool) -> float:
    """Fill a spool, drain it, and print the result; return rows per second."""
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    async with open_pool(nowhere, 1) as pool, open_log(pool, "os", directory, 1 << 40, print) as log:
        await fill(log, rows)
    await upgrade_schema(url)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with open_pool(url, 2) as pool:
        await make_partitions_ahead(pool, timeout=10)
        if not ledger:
            await pool.execute("DROP TRIGGER count_predictions ON prediction_log")
        started = time.monotonic()
        cpu = time.process_time()
        async with open_log(pool, "os", directory, 1 << 40, print) as log:
            while await pool.fetchval("SELECT count(*) FROM prediction_log") < rows:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        seconds = time.monotonic() - started
        used = time.process_time() - cpu
        stored = await pool.fetchval("SELECT count(*) FROM prediction_log")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    print("with the ledger: " if ledger else "without it: ", end="")
    print(f"{stored:,} of {rows:,} rows in {seconds:.1f} s: {stored / seconds:,.0f} rows/s, ", end="")
    print(f"{used / stored * 1e6:.1f} us of the shipper's CPU per row, memory grew by {grown / 1024:.0f} MiB")
    return float(stored / seconds)


def main() -> None:
    """Measure both variants in turn, with a new database each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    found: dict[bool, list[float]] = {True: [], False: []}
    for ledger in (True, False) * options.rounds:
        with database() as url, tempfile.TemporaryDirectory() as directory:
            found[ledger].append(asyncio.run(measure(url, Path(directory), options.rows, ledger=ledger)))
    medians = [statistics.median(found[ledger]) for ledger in (True, False)]
    print("median: {:,.0f} rows/s with the ledger, {:,.0f} without".format(*medians))


if __name__ == "__main__":
    main()
