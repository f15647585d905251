"""The commands."""

import argparse
import asyncio
import sys
from pathlib import Path

from app.errors import ScorekeeperError
from app.replay import Replay, run_replay
from app.settings import BUNDLED_DIR


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
    replay.add_argument("--data", type=Path, default=data / "analysis.csv.gz", help="recorded rows, CSV with an id")
    replay.add_argument("--labels", type=Path, default=data / "analysis_target.csv.gz", help="id and label, CSV")
    replay.set_defaults(command=_replay)
    return parser.parse_args(arguments)


def _replay(options: argparse.Namespace) -> int:
    plan = Replay(
        url=options.url.rstrip("/"),
        rows=options.rows,
        start=options.start,
        rate=options.rate,
        label_delay_seconds=options.label_delay,
        data=options.data,
        labels=options.labels,
    )
    return asyncio.run(run_replay(plan))


class _at_least:  # noqa: N801  # argparse shows the name of a type in its errors
    def __init__(self, low: float, number: type[int] | type[float]) -> None:
        self.low = low
        self.number = number
        self.__name__ = f"{number.__name__} (at least {low})"

    def __call__(self, text: str) -> float:
        value = self.number(text)
        if not self.low <= value < float("inf"):
            raise ValueError(text)
        return value
