"""`python -m tests.compose`: bring compose.yaml's stack up, use it, kill parts of it, take it down; 1 when that fails.

Takes the images that the engine has or can get; without Grafana's, and only then, the stack runs without Grafana.
"""

import asyncio
import sys
import time

from tests.compose.stack import Stack, find_services
from tests.compose.steps import STEPS


async def main() -> int:
    """Run every step in turn, each with its time; the stack is taken down whatever happens."""
    stack = Stack(find_services())
    print(f"services: {', '.join(stack.services)}", flush=True)
    try:
        for step in STEPS:
            started = time.monotonic()
            found = await step(stack)
            print(f"{time.monotonic() - started:6.1f} s  {step.__doc__} {found or ''}", flush=True)
    except Exception:
        print(
            stack.compose("ps", check=False), stack.compose("logs", "--tail=50", check=False), sep="\n", file=sys.stderr
        )
        raise
    finally:
        stack.compose("down", "--volumes", "--timeout", "30")
    print(f"{len(STEPS)} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
