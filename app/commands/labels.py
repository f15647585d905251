"""`scorekeeper labels`: send labels from a file to a running server."""

import argparse
import asyncio
from pathlib import Path
from typing import get_args

from app.commands.arguments import Commands, at_least
from app.exchange.label_batch import EmptyLabel
from app.exchange.label_files import Columns, LabelFormat, name_format
from app.exchange.label_import import LabelImport, run_import


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("labels", help="send labels from a file to a running server")
    action = parser.add_subparsers(required=True, metavar="ACTION").add_parser(
        "import",
        help="send a CSV, NDJSON or Parquet file",
        description="Send the labels of a file to a running server; the same command goes on where it stopped.",
    )
    action.add_argument("file", type=Path, help="CSV, NDJSON (both also as .gz) or Parquet")
    action.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    action.add_argument("--format", choices=get_args(LabelFormat), help="default: by the name")
    action.add_argument("--id-column", help="default: prediction_id, and external_id for rows without")
    action.add_argument("--external-id-column", help="the client's own key")
    action.add_argument("--label-column", default="label", help="default: %(default)s")
    action.add_argument("--observed-at-column", help="times with an offset (default: observed_at if there is one)")
    action.add_argument(
        "--empty-label",
        choices=get_args(EmptyLabel),
        help="what an empty label means (default: refuse; in NDJSON null withdraws, as in POST /labels)",
    )
    action.add_argument(
        "--batch", type=at_least(1, int), default=5000, help="rows sent together (default: %(default)s)"
    )
    action.add_argument("--skip-invalid", type=Path, metavar="FILE", help="write malformed rows there, send the others")
    action.add_argument("--state", type=Path, help="how far it has come (default: FILE.import)")
    action.add_argument("--restart", action="store_true", help="begin at the first row again, observed as before")
    return parser


def run(options: argparse.Namespace) -> int:
    """Import the file."""
    file_format = options.format or name_format(options.file)
    plan = LabelImport(
        url=options.url.rstrip("/"),
        path=options.file,
        file_format=file_format,
        columns=Columns(
            options.id_column, options.external_id_column, options.label_column, options.observed_at_column
        ),
        empty_label=options.empty_label or ("withdraw" if file_format == "ndjson" else "refuse"),
        batch_rows=options.batch,
        state=options.state or options.file.with_name(f"{options.file.name}.import"),
        restart=options.restart,
        malformed=options.skip_invalid,
    )
    return asyncio.run(run_import(plan))
