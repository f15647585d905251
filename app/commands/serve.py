"""`scorekeeper serve`: run the server."""

import argparse

from app.commands.arguments import Commands, at_least
from app.server.serve import serve


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "serve",
        help="run the server, with deadlines and limits for its clients",
        description="Run the server, with deadlines and limits for its clients. Settings are environment variables.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    parser.add_argument(
        "--port", type=at_least(0, int, at_most=65_535), default=8000, help="the port to listen at, 0: any"
    )
    parser.add_argument("--no-access-log", dest="access_log", action="store_false", help="no line per request")
    return parser


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    serve(options.host, options.port, access_log=options.access_log)
    return 0
