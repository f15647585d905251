"""`python -m tests.faults`: every scenario, the longer ones too, as a table; 1 when any fails."""

import argparse
import asyncio
import shutil
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.conftest import make_open_directory
from tests.faults.postgres import Postgres
from tests.faults.scenario import Scenario, Verdict, run_scenario
from tests.faults.scenarios import list_long_scenarios, list_scenarios
from tests.faults.suite import open_postgres
from tests.faults.world import Peaks

KILLS = 12

LOG_WIDTH = 160
"""Columns of the table where there is no terminal."""


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--repeat", type=int, default=1, help="how often each scenario runs")
    parser.add_argument("--kills", type=int, default=KILLS, help="how often a process is killed in one scenario")
    parser.add_argument("--logs", type=Path, help="a directory for what the servers say")
    arguments = parser.parse_args()
    scenarios = [*list_scenarios(arguments.kills), *list_long_scenarios()]
    chosen = [scenario for scenario in scenarios if arguments.only in scenario.name] * arguments.repeat
    return asyncio.run(run_all(chosen, arguments.logs))


async def run_all(scenarios: list[Scenario], logs: Path | None) -> int:
    """Run scenarios one after the other and print the table."""
    console = Console() if sys.stdout.isatty() else Console(width=LOG_WIDTH)
    verdicts = []
    async with open_postgres() as postgres:
        for scenario in scenarios:
            console.print(f"{scenario.name} ...")
            verdict = await run_one(scenario, postgres, logs)
            verdicts.append(verdict)
            for problem in verdict.problems:
                console.print(f"  {problem}", markup=False)
    console.print(make_table(scenarios, verdicts))
    return int(not verdicts or any(verdict.problems for verdict in verdicts))


async def run_one(scenario: Scenario, postgres: Postgres, logs: Path | None) -> Verdict:
    """Run a scenario in a directory of its own; whatever goes wrong is its problem, and the next one's turn."""
    started = time.monotonic()
    with make_open_directory() as directory:
        try:
            return await run_scenario(scenario, postgres, directory)
        except Exception as error:  # the body of the suite's loop
            traceback.print_exception(error)
            problem = str(error).partition("\n")[0] or type(error).__name__
            return Verdict(0, 0, 0, 0, 0, time.monotonic() - started, Peaks(), (problem,))
        finally:
            if logs is not None:
                with suppress(FileNotFoundError):  # it failed before there was a server
                    shutil.copy(directory / "server.log", logs / f"{scenario.name}.log")


def make_table(scenarios: list[Scenario], verdicts: list[Verdict]) -> Table:
    """Make the table of results."""
    table = Table("fault")
    for name in ("answered", "stored", "lost", "duplicates", "refused", "MB", "files", "segments", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("result")
    for scenario, verdict in zip(scenarios, verdicts, strict=True):
        peaks = verdict.peaks
        numbers = (verdict.answered, verdict.stored, verdict.lost, verdict.duplicates, verdict.refused)
        most = (f"{peaks.memory_bytes / 1e6:.0f}", str(peaks.descriptors), str(peaks.spool_files))
        result = "; ".join(verdict.problems) if verdict.problems else "ok"
        table.add_row(scenario.name, *map(str, numbers), *most, f"{verdict.seconds:.1f}", result)
    return table


if __name__ == "__main__":
    sys.exit(main())
