"""Types of arguments that several commands use."""

import argparse
import math
from collections.abc import Callable
from datetime import datetime
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001  # it has no public name


def at_least(low: float, number: type[int] | type[float], at_most: float = math.inf) -> Callable[[str], float]:
    """Return a parser of arguments that allows finite numbers from `low` to `at_most`."""

    def parse(text: str) -> float:
        value = number(text)
        if value == math.inf or not low <= value <= at_most:
            raise ValueError(text)
        return value

    # argparse shows this name in its errors.
    parse.__name__ = f"{number.__name__} (at least {low})" if at_most == math.inf else f"number ({low} to {at_most})"
    return parse


def instant(text: str) -> datetime:
    """Parse a time with an offset from UTC."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-01-31T00:00:00Z") from None
    if parsed.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no offset from UTC: add Z, or one such as +01:00")
    return parsed
