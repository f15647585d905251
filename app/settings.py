"""Settings, read once from the environment: a wrong value stops the start with one line."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar, get_args
from urllib.parse import urlsplit

from app.errors import StartupError

T = TypeVar("T")
Number = TypeVar("Number", int, float)

F1Average = Literal["binary", "macro", "micro", "weighted"]
LogFormat = Literal["json", "console"]
Durability = Literal["fsync", "database", "os"]

_BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_DIR = _BUNDLED if _BUNDLED.is_dir() else Path(__file__).parent.parent
"""The directory of migrations, alembic.ini and the demo: inside an installed wheel, else the top of the repository."""


@dataclass(frozen=True, slots=True)
class QualityWindow:
    """A trailing window over predictions, under the name that the operator wrote, e.g. `24h`."""

    name: str
    length: timedelta


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator can choose. `DATABASE_URL` unset means the embedded server under `DATA_DIR`."""

    database_url: str | None
    data_dir: Path
    model_dir: Path
    default_model: str | None
    migrate_on_start: bool
    durability: Durability
    spool_max_bytes: int
    f1_interval_seconds: float
    quality_windows: tuple[QualityWindow, ...]
    f1_average: F1Average | None
    f1_objective: float | None
    min_labels: int
    retention_days: int
    max_body_bytes: int
    max_batch_rows: int
    log_format: LogFormat
    access_log: bool

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read every setting from `environ`; raise StartupError that names the first wrong variable."""

        def read(name: str, default: str, parse: Callable[[str], T], allowed: str) -> T:
            text = environ.get(name) or default
            try:
                return parse(text)
            except ValueError:
                raise StartupError(f"{name} is {text!r}, allowed is {allowed}") from None

        return cls(
            database_url=_parse_database_url(_read_secret(environ, "DATABASE_URL")),
            data_dir=Path(environ.get("DATA_DIR") or "data").absolute(),
            model_dir=Path(environ.get("MODEL_DIR") or BUNDLED_DIR / "demo" / "models").absolute(),
            default_model=environ.get("DEFAULT_MODEL") or None,
            migrate_on_start=read("MIGRATE_ON_START", "true", _parse_bool, "true or false"),
            durability=read("DURABILITY", "fsync", _one_of(*get_args(Durability)), "fsync, database or os"),
            spool_max_bytes=read(
                "SPOOL_MAX_BYTES",
                str(1024**3),
                _between(64 * 1024**2, 1024**5, int),
                "a number of bytes from 67108864 (64 MiB) to 1 PiB",
            ),
            f1_interval_seconds=read(
                "F1_INTERVAL_SECONDS", "15", _between(0.1, 86_400.0, float), "a number of seconds from 0.1 to 86400"
            ),
            quality_windows=read(
                "QUALITY_WINDOWS",
                "1h,24h,7d",
                _parse_windows,
                "a comma-separated list of different lengths from 1m to 365d such as 30m,24h,7d",
            ),
            f1_average=read(
                "F1_AVERAGE", "", _one_of(*get_args(F1Average), None), "binary, macro, micro, weighted or nothing"
            ),
            f1_objective=read("F1_OBJECTIVE", "", _between_or_none(0.0, 1.0), "a number from 0 to 1 or nothing"),
            min_labels=read("MIN_LABELS", "50", _between(1, 1_000_000, int), "a number of labels from 1 to 1000000"),
            retention_days=read(
                "RETENTION_DAYS", "0", _between(0, 36_500, int), "a number of days from 1 to 36500, or 0 to keep all"
            ),
            max_body_bytes=read(
                "MAX_BODY_BYTES", str(8 * 1024**2), _between(1024, 1024**3, int), "a number of bytes from 1024 to 1 GiB"
            ),
            max_batch_rows=read(
                "MAX_BATCH_ROWS", "10000", _between(1, 100_000, int), "a number of rows from 1 to 100000"
            ),
            log_format=read("LOG_FORMAT", "console", _one_of(*get_args(LogFormat)), "json or console"),
            access_log=read("ACCESS_LOG", "true", _parse_bool, "true or false"),
        )


def _read_secret(environ: Mapping[str, str], name: str) -> str | None:
    """Read `name`, or the first line of the file that `name_FILE` points to; both at once are refused."""
    path = environ.get(f"{name}_FILE")
    if not path:
        return environ.get(name) or None
    if environ.get(name):
        raise StartupError(f"{name} and {name}_FILE are both set, allowed is one of them")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{name}_FILE is {path!r}, which cannot be read: {error}") from error
    if not lines or not lines[0].strip():
        raise StartupError(f"{name}_FILE is {path!r}, whose first line is empty")
    return lines[0].strip()


def _parse_database_url(url: str | None) -> str | None:
    """Check the scheme only: the driver checks the rest. The error does not show the URL, which may hold a password."""
    try:
        known = url is None or urlsplit(url).scheme in ("postgresql", "postgres")
    except ValueError:
        known = False
    if not known:
        raise StartupError(
            "DATABASE_URL is not a PostgreSQL URL, allowed is postgresql://user:password@host:5432/database"
        )
    return url


def _parse_bool(text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ValueError(text)
    return lowered in ("true", "1", "yes", "on")


def _between(low: Number, high: Number, number: Callable[[str], Number]) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        value = number(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _between_or_none(low: float, high: float) -> Callable[[str], float | None]:
    """Parse a number, or None from an empty text."""
    parse = _between(low, high, float)
    return lambda text: parse(text) if text else None


def _one_of(*choices: T) -> Callable[[str], T]:
    """Parse one of `choices`; the choice None stands for an empty text."""

    def parse(text: str) -> T:
        for choice in choices:
            if text == (choice or ""):
                return choice
        raise ValueError(text)

    return parse


_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


def _parse_windows(text: str) -> tuple[QualityWindow, ...]:
    windows = tuple(_parse_window(name.strip()) for name in text.split(","))
    if len({window.length for window in windows}) < len(windows):
        raise ValueError(text)
    return windows


def _parse_window(name: str) -> QualityWindow:
    match = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", name)
    if match is None or int(match[1]) * _UNITS[match[2]] > timedelta(days=365):
        raise ValueError(name)
    return QualityWindow(name, int(match[1]) * _UNITS[match[2]])
