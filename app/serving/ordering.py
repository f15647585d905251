"""The order of versions."""

import re


def version_order(version: str) -> list[tuple[bool, int, str]]:
    """Order versions, numbers as numbers: 9 before 10, 1.9 before 1.10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", version)]
