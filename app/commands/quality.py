"""`scorekeeper quality`: compare the ledger with the rows of the log, or rebuild it from them."""

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date

import asyncpg
from rich.console import Console
from rich.progress import track

from app.commands.arguments import Commands
from app.database.migrate import read_schema_state
from app.database.pool import check_server, open_database_url, open_pool
from app.database.queries import Connection
from app.errors import ScorekeeperError
from app.quality.ledger import find_day_differences, rebuild_day
from app.quality.ledger_queries import list_stored_days
from app.quality.queries import read_clock
from app.settings import Settings

DAY_SECONDS = 3600.0
"""Limit for each statement about one day; ten million rows take about a minute."""

SHOWN_DIFFERENCES = 50
"""Print at most this many differences; more would show nothing new."""


class QualityCommandError(ScorekeeperError):
    """The command cannot do what was asked; the message says why."""


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("quality", help="compare the quality ledger with the log, or rebuild it")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    for name, description in (
        ("check", "Compare the ledger with the rows of the log; exit status 1 if they differ."),
        ("rebuild", "Rebuild the ledger from the rows of the log; servers can run meanwhile."),
    ):
        action = actions.add_parser(name, help=description, description=description)
        action.add_argument("--since", type=date.fromisoformat, default=date.min, help="first day, UTC (default: all)")
        action.add_argument("--until", type=date.fromisoformat, default=date.max, help="last day, UTC (default: all)")
    return parser


def run(options: argparse.Namespace) -> int:
    """Check or rebuild."""
    return asyncio.run(_run_action(options, Settings.from_env()))


async def _run_action(options: argparse.Namespace, settings: Settings) -> int:
    async with open_database_url(settings.database_url, settings.data_dir, must_exist=True) as url:
        act = check_ledger if options.action == "check" else rebuild_ledger
        return await act(url, options.since, options.until)


async def rebuild_ledger(url: str, since: date, until: date, console: Console | None = None) -> int:
    """Rebuild the ledger of these days (UTC), one transaction per day, while servers run; return 0."""
    console = console or Console()
    async with _open_connection(url) as connection:
        days = await _find_days(connection, since, until)
        made = 0
        for day in track(days, description="rebuild", console=console, transient=True):
            made += await rebuild_day(connection, day, DAY_SECONDS)
    console.print(f"rebuilt the ledger of {made:,} days; days without rows in the log were not changed")
    return 0


async def check_ledger(url: str, since: date, until: date, console: Console | None = None) -> int:
    """Compare the ledger of these days (UTC) with the rows, and print differences; return 1 when there are any."""
    console = console or Console()
    found = 0
    async with _open_connection(url) as connection:
        days = await _find_days(connection, since, until)
        now = await read_clock(connection)
        for day in track(days, description="check", console=console, transient=True):
            for span, row in await find_day_differences(connection, day, now, DAY_SECONDS):
                found += 1
                if found <= SHOWN_DIFFERENCES:
                    console.print(_describe_difference(span, row), soft_wrap=True, markup=False)
    hint = ": run `scorekeeper quality rebuild`" if found else ""
    console.print(f"{len(days):,} days compared, {found:,} cells differ{hint}")
    return 1 if found else 0


async def _find_days(connection: Connection, since: date, until: date) -> list[date]:
    """Return the days from `since` to `until` whose rows are all in the log."""
    return [day for day in await list_stored_days(connection) if since <= day <= until]


def _describe_difference(span: int, row: asyncpg.Record) -> str:
    """Describe a cell that differs, with the ledger's numbers minus those of the rows."""
    label = "all rows" if row["label"] is None else f"label {row['label']!r}"
    return (
        f"{row['starts_at']:%Y-%m-%d %H:%M} + {span} s, {row['model_name']} {row['model_version']} {row['role']}, "
        f"bin {row['score_bin']}, predicted {row['predicted_class']!r}, {label}: {row['rows']:+d} rows, "
        f"sums {row['score_sum']:+d}, {row['score_square_sum']:+d}, {row['delay_sum']:+d}"
    )


@asynccontextmanager
async def _open_connection(url: str) -> AsyncIterator[Connection]:
    """Connect; raise QualityCommandError when the schema is older than this release's."""
    await check_server(url)
    async with open_pool(url, max_size=1) as pool, pool.acquire(timeout=10) as connection:
        if await read_schema_state(connection) == "behind":
            raise QualityCommandError("the database schema is behind: run `alembic upgrade head`")
        yield connection
