"""`scorekeeper export`: write the labelled rows of a period to a file."""

import argparse
import asyncio
from pathlib import Path
from typing import get_args

from app.commands.arguments import Commands, instant
from app.database.pool import open_database_url
from app.exchange.export import Export, ExportFormat, run_export
from app.quality.export_queries import ExportFilter
from app.quality.queries import LATEST
from app.settings import Settings


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "export",
        help="write the labelled rows of a period to a file",
        description="Write labelled predictions, those that GET /quality counts, from the database to a file.",
    )
    parser.add_argument("--since", type=instant, required=True, help="start of the period, e.g. 2026-01-31T00:00:00Z")
    parser.add_argument("--until", type=instant, default=LATEST, help="end of the period (default: the newest row)")
    parser.add_argument("--model", help="only this model (default: all)")
    parser.add_argument("--version", help="only this version (default: all)")
    parser.add_argument("--all", action="store_true", help="also write rows without a label")
    parser.add_argument("--format", choices=get_args(ExportFormat), help="default: parquet for *.parquet, else csv")
    parser.add_argument("--output", type=Path, required=True, help="the file; an old one is replaced at the end")
    return parser


def run(options: argparse.Namespace) -> int:
    """Write the file."""
    wanted = ExportFilter(options.since, options.until, options.model, options.version, not options.all)
    by_name: ExportFormat = "parquet" if options.output.suffix == ".parquet" else "csv"
    return asyncio.run(_export(Export(wanted, options.format or by_name, options.output), Settings.from_env()))


async def _export(export: Export, settings: Settings) -> int:
    async with open_database_url(settings.database_url, settings.data_dir, must_exist=True) as url:
        return await run_export(export, url)
