"""What the lifespan hands to the request handlers."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import asyncpg
from starlette.types import Scope

from app.database.clock import DatabaseClock
from app.database.migrate import SchemaState
from app.errors import Reason, keep_since
from app.prediction_log.log import PredictionLog
from app.quality.label_status_queries import LabelStatus
from app.quality.queries import QualityResult
from app.quality.refresh import QualitySettings
from app.serving.reloading import Reloader
from app.serving.repository import ModelRepository
from app.settings import Durability

STATE_KEY = "scorekeeper"
"""The key of `State` in the lifespan's state, which the scope of every request carries."""


@dataclass(slots=True)
class Lifecycle:
    """The conditions of the process that readiness depends on, each with when it began."""

    stopping: Reason | None = None
    database_trouble: Reason | None = field(
        default_factory=lambda: Reason(
            code="database_unprepared", detail="PostgreSQL has not been reached since the start"
        )
    )
    """Why the database is not prepared; None: its schema is as new as this release needs, or newer."""
    job_troubles: dict[str, Reason] = field(default_factory=dict)
    """Why the last run of a job failed, by the reason's code; without an entry it succeeded."""

    def stop(self) -> None:
        """Note that the server is shutting down."""
        self.stopping = self.stopping or Reason(code="stopping", detail="the server is shutting down")

    def note_job(self, code: str, detail: str | None) -> None:
        """Note that a job failed, or with None that it succeeded."""
        if detail is None:
            self.job_troubles.pop(code, None)
        else:
            self.job_troubles[code] = keep_since(Reason(code=code, detail=detail), self.job_troubles.get(code))

    def note_refusal(self) -> None:
        """Note that PostgreSQL was reached, but cannot be used as it is."""
        detail = "PostgreSQL was reached and cannot be used as it is; the server's log says why"
        self.database_trouble = keep_since(Reason(code="database_unprepared", detail=detail), self.database_trouble)

    def note_schema(self, schema: SchemaState) -> None:
        """Note the state of the database's schema."""
        if schema != "behind":
            self.database_trouble = None
        elif self.database_trouble is None or self.database_trouble.code != "schema_behind":
            detail = "the database schema is behind: run `alembic upgrade head`"
            self.database_trouble = Reason(code="schema_behind", detail=detail)


@dataclass(slots=True)
class Scoreboard:
    """The latest results that this replica has read; it shows them also while the database is unreachable."""

    stale_after: timedelta
    results: Sequence[QualityResult] = ()
    labels: LabelStatus | None = None
    clock: DatabaseClock = field(default_factory=DatabaseClock)
    """By which results are dated, and so by which they are stale."""
    _read_at: float = field(default_factory=time.monotonic)

    def note_results(self, results: Sequence[QualityResult]) -> None:
        """Show these results, which have just been read."""
        self.results, self._read_at = results, time.monotonic()

    def find_state(self, result: QualityResult) -> str:
        """Return the result's state, or `stale` when the result is older than `stale_after`."""
        return "stale" if self.clock.now() - result.computed_at > self.stale_after else result.measures.state

    def find_trouble(self) -> Reason | None:
        """Return that the newest results are old, or that none could be read for as long: no replica's job works."""
        now, age = self.clock.now(), timedelta(seconds=time.monotonic() - self._read_at)
        if self.results:
            age = max(age, now - max(result.computed_at for result in self.results))
        if age <= self.stale_after:
            return None
        detail = f"no quality numbers for {age.total_seconds():.0f} s: no replica computes them, or they cannot be read"
        return Reason(code="quality_stale", detail=detail, since=now - age + self.stale_after)


@dataclass(frozen=True, slots=True)
class State:
    """Handles of everything that is open while the server runs.

    `loop` is the running event loop: before Python 3.12 `asyncio.get_running_loop` makes a system call.
    """

    loop: asyncio.AbstractEventLoop
    repository: ModelRepository
    reloader: Reloader
    log: PredictionLog
    pool: asyncpg.Pool
    lifecycle: Lifecycle
    durability: Durability
    max_body_bytes: int
    max_batch_rows: int
    quality: QualitySettings
    scoreboard: Scoreboard

    @property
    def clock(self) -> DatabaseClock:
        """The database's clock."""
        return self.scoreboard.clock


def get_state(scope: Scope) -> State:
    """Return the state of the process that serves this request."""
    state: State = scope["state"][STATE_KEY]
    return state
