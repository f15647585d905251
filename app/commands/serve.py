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
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument(
        "--port", type=at_least(0, int, at_most=65_535), default=8000, help="the port to listen on; 0: any free port"
    )
    parser.add_argument("--root-path", default="", help="the prefix that a proxy in front of the server removes")
    return parser


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    serve(options.host, options.port, root_path=options.root_path)
    return 0
