"""A wall clock that is wrong or set while a process runs (libfaketime); the monotonic clock stays right."""

from pathlib import Path

LIBFAKETIME = next(
    iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), Path("/usr/lib/faketime/libfaketime.so.1")
)
"""From Debian's package libfaketime."""


def fake_clock(clock: Path) -> dict[str, str]:
    """Return the environment of a process whose clock is off by the offset in a file, which says +0 if it is new."""
    assert LIBFAKETIME.exists(), "missing: libfaketime"
    if not clock.exists():
        set_clock(clock, "+0")
    return {
        "LD_PRELOAD": str(LIBFAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def set_clock(clock: Path, offset: str) -> None:
    """Replace the offset at once."""
    new = clock.with_suffix(".new")
    new.write_text(offset + "\n")
    new.rename(clock)
