"""`python -m tests.fuzzing --seed 1`: 100,000 spoilt requests; prints what was answered, 1 when anything was wrong."""

import argparse
import asyncio
import sys
import time

from rich.console import Console

from app.database.embedded import run_embedded_server
from tests.conftest import make_open_directory
from tests.fuzzing.run import Findings, fuzz

SHOWN = 50
"""Wrong things printed, at most."""


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--count", type=int, default=100_000, help="how many cases")
    options = parser.parse_args()
    started = time.monotonic()
    findings = asyncio.run(run(options.seed, options.first, options.count))
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for wrong in findings.wrong[:SHOWN]:
        console.print(wrong)
    statuses = ", ".join(f"{status}: {count:,}" for status, count in sorted(findings.statuses.items()))
    console.print(f"answers: {statuses}")
    console.print(f"rows answered: {len(findings.said):,}, stored: {findings.stored:,}; resets: {findings.resets:,}")
    console.print(f"wrong: {len(findings.wrong)}, in {time.monotonic() - started:.0f} s")
    return int(bool(findings.wrong))


async def run(seed: int, first: int, count: int) -> Findings:
    """Fuzz a server with a PostgreSQL of its own."""
    with make_open_directory() as directory:
        async with run_embedded_server(directory / "postgres") as url:
            return await fuzz(url, directory, seed, first, count)


if __name__ == "__main__":
    sys.exit(main())
