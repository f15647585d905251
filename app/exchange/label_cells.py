"""Values as programs write them to files: times of databases, ids and labels that were numbers on the way."""

import math
import re
from datetime import UTC, datetime
from decimal import Decimal

TIME = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})[T ](?P<time>\d{2}:\d{2}:\d{2})(?:\.(?P<fraction>\d{1,9}))?"
    r" ?(?P<offset>UTC|Z|[+-]\d{2}(?::?\d{2}){0,2})",
    re.ASCII | re.IGNORECASE,
)
"""PostgreSQL's 2024-05-01 12:00:00+00, BigQuery's 2024-05-01 12:00:00 UTC, Snowflake's 2024-05-01 12:00:00.0 +0000."""

SHORTENED = re.compile(r"\d+(\.\d+)?E\+\d+", re.ASCII | re.IGNORECASE)
"""A long number as a spreadsheet or pandas shows it; its digits are lost."""

EXACT = 2**53
"""From here on, a double-precision number may stand for several whole numbers."""


class CellError(Exception):
    """A value cannot be what its column is for; the message says why."""


def is_empty(value: object) -> bool:
    """Return whether a cell has no value; in Parquet, pandas may write a NaN for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def parse_time(value: object) -> object:
    """Return the time that a text means; another value, or a text that is none of a database's, as it is."""
    found = TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    offset = "+00:00" if found["offset"].upper() in {"UTC", "Z"} else found["offset"]
    fraction = (found["fraction"] or "0")[:6].ljust(6, "0")  # Snowflake has nanoseconds
    try:
        moment = datetime.fromisoformat(f"{found['day']}T{found['time']}.{fraction}{offset}")
        return moment.astimezone(UTC)  # offsets of long ago have seconds, which JSON has not
    except (ValueError, OverflowError) as error:
        raise CellError(f"not a time: {error}") from error


def spell_key(value: object) -> object:
    """Return a client's key as the text that was sent to /predict: a whole number without a fraction."""
    if isinstance(value, str):
        if SHORTENED.fullmatch(value):
            raise CellError("a number that a spreadsheet has shortened; write the column as text")
        return value
    if isinstance(value, bool):
        raise CellError("neither a text nor a whole number")
    if isinstance(value, float) and not abs(value) < EXACT:
        raise CellError("a number that may have lost digits; write the column as text or as whole numbers")
    if isinstance(value, int | float | Decimal):
        return str(_round(value))
    return value


def spell_label(value: object) -> object:
    """Return a label as POST /labels takes it: booleans as text, decimal numbers as whole ones."""
    if isinstance(value, bool):
        return str(value).lower()
    return _round(value) if isinstance(value, Decimal) else value


def _round(value: float | Decimal) -> int:
    if value != int(value):
        raise CellError("not a whole number")
    return int(value)
