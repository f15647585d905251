"""`scorekeeper labels`: send labels from a file to a running server."""

import argparse
import asyncio
import codecs
from pathlib import Path
from typing import get_args

from app.commands.arguments import Commands, at_least
from app.exchange.label_batch import EmptyLabel
from app.exchange.label_files import Columns, LabelFormat, name_format
from app.exchange.label_import import LabelImport, check_file, run_import
from app.exchange.text_files import TextForm


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("labels", help="send labels from a file to a running server")
    action = parser.add_subparsers(required=True, metavar="ACTION").add_parser(
        "import",
        help="send a CSV, NDJSON or Parquet file",
        description=(
            "Send the labels of a file to a running server. After an interruption, run the same command again: it "
            "continues where it stopped."
        ),
    )
    action.add_argument("file", type=Path, help="CSV, NDJSON (also compressed, .gz) or Parquet")
    action.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    action.add_argument("--format", choices=get_args(LabelFormat), help="default: from the file's name")
    action.add_argument("--delimiter", type=_delimiter, help="of CSV: a character or `tab` (default: , ; tab or |)")
    action.add_argument("--encoding", type=_encoding, help="of text (default: UTF-8, or UTF-16 where it is that)")
    action.add_argument("--id-column", help="default: prediction_id, or external_id in rows that have only that")
    action.add_argument("--external-id-column", help="the column with the client's own key")
    action.add_argument("--label-column", default="label", help="default: %(default)s")
    action.add_argument("--observed-at-column", help="times with an offset (default: observed_at if it exists)")
    action.add_argument(
        "--empty-label",
        choices=get_args(EmptyLabel),
        help="what an empty label means (default: refuse; in NDJSON, null withdraws the label, as in POST /labels)",
    )
    action.add_argument(
        "--batch", type=at_least(1, int), default=5000, help="rows in one request (default: %(default)s)"
    )
    action.add_argument(
        "--skip-invalid", type=Path, metavar="FILE", help="write malformed rows to this file, send the others"
    )
    action.add_argument(
        "--rejected", type=Path, metavar="FILE", help="write rows that the server rejects to this (FILE.rejected)"
    )
    action.add_argument("--state", type=Path, help="the file that keeps the progress (default: FILE.import)")
    action.add_argument(
        "--restart", action="store_true", help="begin at the first row again, with the same times of observation"
    )
    action.add_argument("--dry-run", action="store_true", help="check all rows, send nothing")
    return parser


def _delimiter(text: str) -> str:
    """Parse the delimiter of CSV."""
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(f"{text!r} is not one character, nor `tab`")
    return delimiter


def _encoding(text: str) -> str:
    """Parse the name of a text encoding."""
    try:
        "".encode(text)
    except LookupError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an encoding that Python knows, such as cp1252") from None
    return "utf-8-sig" if codecs.lookup(text).name == "utf-8" else text


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
        form=TextForm(options.encoding, options.delimiter),
        malformed=options.skip_invalid,
        rejected=options.rejected or options.file.with_name(f"{options.file.name}.rejected"),
    )
    return check_file(plan) if options.dry_run else asyncio.run(run_import(plan))
