"""The database's time, told between two readings by the monotonic clock, and how far this server's clock is off."""

import time
from datetime import UTC, datetime

from app import metrics
from app.database.queries import Connection, read_time
from app.errors import Reason

SKEW_SECONDS = 1.0
"""From which difference on /health names it: labels and predictions are dated by two clocks."""


class DatabaseClock:
    """The one clock for retention, staleness and labels. Until the first reading it is this server's own."""

    def __init__(self) -> None:
        self._offset: float | None = None
        self._uncertainty = 0.0
        self._since: datetime | None = None

    async def read(self, connection: Connection) -> None:
        """Read the database's clock."""
        asked = time.monotonic()
        at = await read_time(connection)
        self.note(at, asked, time.monotonic())

    def note(self, at: datetime, asked: float, answered: float) -> None:
        """Note the database's time, read between two monotonic times."""
        self._offset = at.timestamp() - (asked + answered) / 2
        self._uncertainty = (answered - asked) / 2

    def now(self) -> datetime:
        """Return the database's time."""
        return datetime.fromtimestamp(self._now(), UTC)

    def _now(self) -> float:
        return time.time() if self._offset is None else time.monotonic() + self._offset

    @property
    def skew_seconds(self) -> float | None:
        """How far this server's clock is ahead of the database's; None before the first reading."""
        return None if self._offset is None else time.time() - self._now()

    def find_trouble(self) -> Reason | None:
        """Return that the clocks differ by SKEW_SECONDS or more, and by more than the reading took."""
        skew = self.skew_seconds
        if skew is None or abs(skew) - self._uncertainty < SKEW_SECONDS:
            self._since = None
            return None
        self._since = self._since or self.now()
        side = "ahead of" if skew > 0 else "behind"
        detail = f"this server's clock is {abs(skew):.1f} s {side} the database's: check time synchronization on both"
        return Reason(code="clock_skew", detail=detail, since=self._since)

    def export(self) -> None:
        """Update the gauge."""
        metrics.CLOCK_SKEW.value = self.skew_seconds
