"""`scorekeeper replay`: send recorded rows to a running server, and their labels later."""

import argparse
import asyncio
from pathlib import Path

from app.commands.arguments import Commands, at_least
from app.replay.endless import run_endless
from app.replay.once import run_replay
from app.replay.rows import Replay
from app.settings import BUNDLED_DIR

DATA_DIR = BUNDLED_DIR / "demo" / "data"


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "replay",
        help="send recorded rows to a running server, and their labels later",
        description="Send recorded rows to a running server, and their labels later; compare the F1 of both sides.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--rows", type=at_least(1, int), default=2000, help="how many rows to send")
    parser.add_argument(
        "--start", type=at_least(0, int), default=0, help="the row to begin with; the data drifts from row 25000 on"
    )
    parser.add_argument("--rate", type=at_least(0.1, float), default=200.0, help="rows per second")
    parser.add_argument("--label-delay", type=at_least(0, float), default=2.0, help="seconds from answer to label")
    parser.add_argument(
        "--label-share", type=at_least(0, float, at_most=1), default=1.0, help="share of the rows that get a label"
    )
    parser.add_argument("--loop", action="store_true", help="begin again after the last row, until Ctrl-C")
    parser.add_argument("--data", type=Path, default=DATA_DIR / "analysis.csv.gz", help="recorded rows: CSV with an id")
    parser.add_argument("--labels", type=Path, default=DATA_DIR / "analysis_target.csv.gz", help="CSV of id and label")
    return parser


def run(options: argparse.Namespace) -> int:
    """Send the rows once, or until Ctrl-C."""
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
