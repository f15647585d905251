"""The commands."""

import argparse
import asyncio
import math
import sys
from dataclasses import fields
from datetime import date, datetime
from pathlib import Path
from typing import TypeAlias, get_args

from app.commands.model import Packing, inspect_model, pack_model
from app.commands.quality import check_ledger, rebuild_ledger
from app.commands.spool import drain_spool, show_spool, verify_spool
from app.database.pool import open_database_url
from app.errors import ScorekeeperError
from app.exchange.export import Export, ExportFormat, run_export
from app.exchange.label_batch import EmptyLabel
from app.exchange.label_files import Columns, LabelFormat, name_format
from app.exchange.label_import import LabelImport, run_import
from app.quality.export_queries import ExportFilter
from app.quality.queries import LATEST
from app.replay.endless import run_endless
from app.replay.once import run_replay
from app.replay.rows import Replay
from app.server.serve import serve
from app.settings import BUNDLED_DIR, Settings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # it has no public name


def run(arguments: list[str] | None = None) -> None:
    """Run the command that `arguments` (default: the process's) name, and exit with its status."""
    options = parse_arguments(arguments)
    try:
        sys.exit(options.command(options))
    except ScorekeeperError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse; wrong usage ends the process with status 2 and a line that says what is allowed."""
    parser = argparse.ArgumentParser(
        prog="scorekeeper", description="Serve ONNX classifiers and know how good they are."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_replay(commands)
    _add_spool(commands)
    _add_labels(commands)
    _add_export(commands)
    _add_quality(commands)
    _add_model(commands)
    return parser.parse_args(arguments)


def _add_serve(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="run the server, with deadlines and limits for its clients",
        description="Run the server, with deadlines and limits for its clients. Settings are environment variables.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument(
        "--port", type=_at_least(0, int, at_most=65_535), default=8000, help="the port to listen at, 0: any"
    )
    parser.add_argument("--root-path", default="", help="the prefix that a proxy before the server takes away")
    parser.set_defaults(command=_serve)


def _add_replay(commands: Commands) -> None:
    replay = commands.add_parser(
        "replay",
        help="send recorded rows to a running server, and their labels later",
        description="Send recorded rows to a running server, and their labels later; end with both sides' F1.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    data = BUNDLED_DIR / "demo" / "data"
    replay.add_argument("--url", default="http://127.0.0.1:8000", help="the server")
    replay.add_argument("--rows", type=_at_least(1, int), default=2000, help="how many rows to send")
    replay.add_argument(
        "--start", type=_at_least(0, int), default=0, help="the row to begin with; the drift is at 25000"
    )
    replay.add_argument("--rate", type=_at_least(0.1, float), default=200.0, help="rows per second")
    replay.add_argument("--label-delay", type=_at_least(0, float), default=2.0, help="seconds from answer to label")
    replay.add_argument(
        "--label-share", type=_at_least(0, float, at_most=1), default=1.0, help="share of the rows that get a label"
    )
    replay.add_argument("--loop", action="store_true", help="begin again after the last row, until Ctrl-C")
    replay.add_argument("--data", type=Path, default=data / "analysis.csv.gz", help="recorded rows, CSV with an id")
    replay.add_argument("--labels", type=Path, default=data / "analysis_target.csv.gz", help="id and label, CSV")
    replay.set_defaults(command=_replay)


def _add_spool(commands: Commands) -> None:
    spool = commands.add_parser("spool", help="look at a spool, or bring it to PostgreSQL without a server")
    actions = spool.add_subparsers(required=True, metavar="ACTION")
    for name, action, description in (
        ("status", _show_spool, "Show what a spool holds, also of a server that runs."),
        (
            "verify",
            _verify_spool,
            "Read every frame of a spool and show damage, also of a server that runs; 1: damage.",
        ),
        ("drain", _drain_spool, "Store what a spool holds at DATABASE_URL, and remove it; 0: nothing is left."),
    ):
        parser = actions.add_parser(name, help=description, description=description)
        parser.add_argument("--data-dir", type=Path, help="the directory that holds spool/ (default: DATA_DIR)")
        parser.set_defaults(command=action)


def _add_labels(commands: Commands) -> None:
    labels = commands.add_parser("labels", help="send labels from a file to a running server")
    parser = labels.add_subparsers(required=True, metavar="ACTION").add_parser(
        "import",
        help="send a CSV, NDJSON or Parquet file",
        description="Send the labels of a file to a running server; the same command goes on where it stopped.",
    )
    parser.add_argument("file", type=Path, help="CSV, NDJSON (both also as .gz) or Parquet")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--format", choices=get_args(LabelFormat), help="default: by the name")
    parser.add_argument("--id-column", help="default: prediction_id, and external_id for rows without")
    parser.add_argument("--external-id-column", help="the client's own key")
    parser.add_argument("--label-column", default="label", help="default: %(default)s")
    parser.add_argument("--observed-at-column", help="times with an offset (default: observed_at if there is one)")
    parser.add_argument(
        "--empty-label",
        choices=get_args(EmptyLabel),
        help="what an empty label means (default: refuse; in NDJSON null withdraws, as in POST /labels)",
    )
    parser.add_argument(
        "--batch", type=_at_least(1, int), default=5000, help="rows sent together (default: %(default)s)"
    )
    parser.add_argument("--skip-invalid", type=Path, metavar="FILE", help="write malformed rows there, send the others")
    parser.add_argument("--state", type=Path, help="how far it has come (default: FILE.import)")
    parser.add_argument("--restart", action="store_true", help="begin at the first row again, observed as before")
    parser.set_defaults(command=_import_labels)


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write the labelled rows of a period to a file",
        description="Write labelled predictions, those that GET /quality counts, from DATABASE_URL to a file.",
    )
    parser.add_argument("--since", type=_instant, required=True, help="such as 2026-01-31T00:00:00Z")
    parser.add_argument("--until", type=_instant, default=LATEST, help="default: the newest row")
    parser.add_argument("--model", help="default: all")
    parser.add_argument("--version", help="default: all")
    parser.add_argument("--all", action="store_true", help="rows without a label too")
    parser.add_argument("--format", choices=get_args(ExportFormat), help="default: parquet for *.parquet, else csv")
    parser.add_argument("--output", type=Path, required=True, help="the file to write, or replace when complete")
    parser.set_defaults(command=_export)


def _add_quality(commands: Commands) -> None:
    quality = commands.add_parser("quality", help="compare the quality ledger with the log, or make it anew")
    actions = quality.add_subparsers(required=True, metavar="ACTION")
    for name, action, description in (
        ("check", check_ledger, "Compare the ledger with the rows of the log; 1: they differ."),
        ("rebuild", rebuild_ledger, "Make the ledger anew from the rows of the log, while servers go on."),
    ):
        parser = actions.add_parser(name, help=description, description=description)
        parser.add_argument("--since", type=date.fromisoformat, default=date.min, help="first day, UTC (default: all)")
        parser.add_argument("--until", type=date.fromisoformat, default=date.max, help="last day, UTC (default: all)")
        parser.set_defaults(command=_quality, action=action)


def _add_model(commands: Commands) -> None:
    model = commands.add_parser("model", help="look at a model file, or add what the server needs to know")
    actions = model.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="show what the server sees in it, with a request to try")
    inspect.add_argument("file", type=Path, metavar="FILE", help="an ONNX file")
    inspect.set_defaults(command=lambda options: inspect_model(options.file))
    pack = actions.add_parser("pack", help="write it with more metadata, if the server can load the result")
    pack.add_argument("file", type=Path, metavar="FILE", help="an ONNX file")
    pack.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write; may be the same")
    pack.add_argument("--feature-names", metavar="A,B,...", help="in the order of the inputs; or a JSON array")
    pack.add_argument("--classes", metavar="A,B,...", help="in the order of the probabilities; or a JSON array")
    pack.add_argument("--positive-class", metavar="CLASS", help="of two, the one whose probability is the score")
    pack.add_argument(
        "--decision-threshold", type=_at_least(0, float, at_most=1), help="the score from which it is predicted"
    )
    pack.add_argument("--missing-values", choices=["allowed", "refused"], help="whether null is NaN, or refused")
    pack.add_argument("--output-kind", choices=["probabilities", "logits"], help="what the graph answers")
    pack.add_argument("--example", metavar="JSON", help="a row that the model takes, as array or object")
    pack.add_argument("--training-f1", type=_at_least(0, float, at_most=1), help="F1 on held-out rows")
    pack.set_defaults(command=_pack_model)


def _serve(options: argparse.Namespace) -> int:
    serve(options.host, options.port, root_path=options.root_path)
    return 0


def _replay(options: argparse.Namespace) -> int:
    plan = Replay(
        url=options.url.rstrip("/"),
        rows=options.rows,
        start=options.start,
        rate=options.rate,
        label_delay_seconds=options.label_delay,
        label_share=options.label_share,
        data=options.data,
        labels=options.labels,
    )
    return asyncio.run(run_endless(plan) if options.loop else run_replay(plan))


def _pack_model(options: argparse.Namespace) -> int:
    values = {field.name: getattr(options, field.name) for field in fields(Packing)}
    return pack_model(options.file, options.output, Packing(**values))


def _show_spool(options: argparse.Namespace) -> int:
    return show_spool(_find_spool(options))


def _verify_spool(options: argparse.Namespace) -> int:
    return verify_spool(_find_spool(options))


def _drain_spool(options: argparse.Namespace) -> int:
    return asyncio.run(drain_spool(_find_spool(options), Settings.from_env().database_url))


def _import_labels(options: argparse.Namespace) -> int:
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


def _export(options: argparse.Namespace) -> int:
    wanted = ExportFilter(options.since, options.until, options.model, options.version, not options.all)
    by_name: ExportFormat = "parquet" if options.output.suffix == ".parquet" else "csv"
    return asyncio.run(_run_export(Export(wanted, options.format or by_name, options.output)))


async def _run_export(export: Export) -> int:
    settings = Settings.from_env()
    async with open_database_url(settings.database_url, settings.data_dir) as url:
        return await run_export(export, url)


def _quality(options: argparse.Namespace) -> int:
    return asyncio.run(_run_quality(options))


async def _run_quality(options: argparse.Namespace) -> int:
    settings = Settings.from_env()
    async with open_database_url(settings.database_url, settings.data_dir) as url:
        status: int = await options.action(url, options.since, options.until)
    return status


def _find_spool(options: argparse.Namespace) -> Path:
    data_dir: Path = options.data_dir or Settings.from_env().data_dir
    return data_dir / "spool"


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-01-31T00:00:00Z") from None
    if instant.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no offset from UTC, such as Z or +01:00")
    return instant


class _at_least:  # noqa: N801  # argparse shows the name of a type in its errors
    def __init__(self, low: float, number: type[int] | type[float], at_most: float = math.inf) -> None:
        self.low = low
        self.high = at_most
        self.number = number
        self.__name__ = f"{number.__name__} (at least {low})" if at_most == math.inf else f"number ({low} to {at_most})"

    def __call__(self, text: str) -> float:
        value = self.number(text)
        if value == math.inf or not self.low <= value <= self.high:
            raise ValueError(text)
        return value
