"""Time of the quality job by the size of the log: `python benchmarks/refresh.py`.

For each size, a new database on the second core gets that many predictions, spread over the last seven days, four
fifths of them labelled; their ledger is built from the rows as in `quality rebuild`. Then 15 times: 1,000 new
predictions with labels, and one refresh of the windows 1h, 24h and 7d. The time of a step is measured in the client, so
it includes sending and reading; the shortest of the 15 is reported, since the machine may be busy. For comparison, the
same sums are computed once from the rows, without the ledger (`scan`).
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta

import asyncpg
from predict import database

from app.database.migrate import upgrade_schema
from app.measures.buckets import window_start
from app.prediction_log.queries import make_partitions
from app.quality import queries
from app.quality.label_sweep import sweep_pending
from app.quality.ledger import fold_ledger, rebuild_day, sum_windows
from app.quality.ledger_queries import count_period, list_stored_days
from app.quality.refresh import KnownVersion, QualitySettings, score_windows
from app.serving.queries import fetch_versions, register_version
from app.settings import QualityWindow

WINDOWS = tuple(QualityWindow(f"{hours}h", timedelta(hours=hours)) for hours in (1, 24, 168))
SETTINGS = QualitySettings(WINDOWS, average=None, min_labels=50, objective=None)
DAY, WEEK = timedelta(days=1), timedelta(days=7)
REFRESHES, BATCH_ROWS = 15, 1000
STEPS = ("sweep", "fold", "sum", "store")

PREDICT = """
INSERT INTO prediction_log (prediction_id, created_at, model_name, model_version, predicted_class, score, probabilities,
    features)
SELECT (lpad(to_hex(floor(ms)::bigint), 12, '0') || '70008' || lpad(to_hex(number), 15, '0'))::uuid,
    to_timestamp(floor(ms) / 1000), 'car-loan', '1', (score >= 0.5)::integer::text, score, ARRAY[1 - score, score], '{}'
FROM (
    SELECT number, extract(epoch FROM $1::timestamptz)::float8 * 1000 + $2::float8 * number AS ms,
        ((1 - cos(pi() * random())) / 2)::real AS score
    FROM generate_series(1, $3::bigint) AS numbers (number)
) row
"""

LABEL = """
INSERT INTO prediction_label (prediction_id, label, observed_at, received_at)
SELECT prediction_id, (random() < score)::integer::text, created_at, created_at + interval '1 minute'
FROM prediction_log
WHERE prediction_id >= prediction_id_at($1::timestamptz) AND prediction_id < prediction_id_at($2::timestamptz)
    AND random() < 0.8
ON CONFLICT DO NOTHING
"""


async def fill(connection: asyncpg.Connection, rows: int) -> None:
    """Write a week of labelled predictions without triggers, then build their ledger."""
    now = datetime.now(UTC)
    await make_partitions(connection, (now - WEEK - DAY).date(), (now + DAY).date())
    await register_version(connection, "car-loan", "1", "0" * 64, [0, 1], "1", [{"name": "f0", "type": "number"}])
    await connection.execute("SET session_replication_role = replica")
    await connection.execute(PREDICT, now - WEEK, WEEK / timedelta(milliseconds=1) / rows, rows, timeout=3600)
    await connection.execute(LABEL, now - WEEK - DAY, now + DAY, timeout=3600)
    await connection.execute("RESET session_replication_role")
    for day in await list_stored_days(connection):
        await rebuild_day(connection, day, timeout=3600)
    await connection.execute("VACUUM ANALYZE", timeout=3600)


async def refresh(connection: asyncpg.Connection) -> dict[str, float]:
    """Run the job's steps once after new predictions and labels; return the milliseconds of each."""
    now = datetime.now(UTC)
    await connection.execute(PREDICT, now, 0.001, BATCH_ROWS)
    await connection.execute(LABEL, now, now + timedelta(seconds=2))
    seconds: dict[str, float] = {}

    async def take_time(step: str, awaitable: Awaitable[object]) -> object:
        started = time.perf_counter()
        result = await awaitable
        seconds[step] = (time.perf_counter() - started) * 1000
        return result

    now = await queries.read_clock(connection)
    starts = [window_start(now, window.length) for window in WINDOWS]
    await take_time("sweep", sweep_pending(connection))
    async with connection.transaction():
        await take_time("fold", fold_ledger(connection, now))
    await take_time("sum", sum_windows(connection, starts, now))
    versions = [KnownVersion(*row) for row in await fetch_versions(connection)]
    results = await score_windows(connection, SETTINGS, versions, set(), now)
    async with connection.transaction():
        await take_time("store", queries.store_results(connection, now, SETTINGS.window_names, results))
    return seconds


async def measure(url: str, rows: int) -> dict[str, float]:
    """Fill the database, refresh many times, scan once; return the shortest times in milliseconds."""
    await upgrade_schema(url)
    connection = await asyncpg.connect(url)
    try:
        await fill(connection, rows)
        taken = [await refresh(connection) for _ in range(REFRESHES)]
        found = {step: min(seconds[step] for seconds in taken) for step in STEPS}
        now = await queries.read_clock(connection)
        started = time.perf_counter()
        for window in WINDOWS:
            await count_period(connection, window_start(now, window.length), now)
        found["scan"] = (time.perf_counter() - started) * 1000
        found["buckets"] = await connection.fetchval("SELECT count(*) FROM quality_bucket")
    finally:
        await connection.close()
    return found


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    options = parser.parse_args()
    os.sched_setaffinity(0, {0})
    heads = "predictions", *(f"{step} ms" for step in (*STEPS, "all", "scan")), "buckets"
    print("|", " | ".join(heads), "|")
    print("|---" * len(heads) + "|")
    for rows in options.rows:
        with database() as url:
            found = asyncio.run(measure(url, rows))
        steps = [found[step] for step in STEPS]
        cells = " | ".join(f"{taken:.1f}" for taken in (*steps, sum(steps)))
        print(f"| {rows:,} | {cells} | {found['scan']:,.0f} | {found['buckets']:,} |", flush=True)


if __name__ == "__main__":
    main()
