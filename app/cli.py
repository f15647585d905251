"""The commands."""

import argparse
import asyncio
import math
import sys
from pathlib import Path
from typing import TypeAlias

from app.errors import ScorekeeperError
from app.replay.endless import run_endless
from app.replay.once import run_replay
from app.replay.rows import Replay
from app.server import serve
from app.settings import BUNDLED_DIR, Settings
from app.spool_commands import drain_spool, show_spool, verify_spool

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
    parser.add_argument("--no-access-log", dest="access_log", action="store_false", help="no line per request")
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


def _serve(options: argparse.Namespace) -> int:
    serve(options.host, options.port, access_log=options.access_log)
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


def _show_spool(options: argparse.Namespace) -> int:
    return show_spool(_find_spool(options))


def _verify_spool(options: argparse.Namespace) -> int:
    return verify_spool(_find_spool(options))


def _drain_spool(options: argparse.Namespace) -> int:
    return asyncio.run(drain_spool(_find_spool(options), Settings.from_env().database_url))


def _find_spool(options: argparse.Namespace) -> Path:
    data_dir: Path = options.data_dir or Settings.from_env().data_dir
    return data_dir / "spool"


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
