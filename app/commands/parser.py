"""The command line: the list of commands, and running one of them."""

import argparse
import sys
from importlib.metadata import version

from app.commands import erase, export, labels, model, quality, replay, serve, spool
from app.errors import ScorekeeperError

COMMANDS = (serve, replay, spool, labels, export, erase, quality, model)
"""Modules with `add_parser(commands)`, which returns the command's parser, and `run(options)`, which returns its exit
status."""


def run(arguments: list[str] | None = None) -> None:
    """Run the command in `arguments` (default: those of the process), and exit with its status."""
    options = parse_arguments(arguments)
    try:
        sys.exit(options.run(options))
    except ScorekeeperError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line; wrong usage ends the process with status 2 and a line that says what is allowed."""
    parser = argparse.ArgumentParser(
        prog="scorekeeper", description="Serve ONNX classifiers and know how good they are."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('scorekeeper')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    return parser.parse_args(arguments)
