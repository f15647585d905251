"""What the lifespan hands to the request handlers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg
from starlette.types import Scope

from app.database.migrate import SchemaState
from app.errors import Reason
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

    def stop(self) -> None:
        """Note that the server is shutting down."""
        self.stopping = self.stopping or Reason(code="stopping", detail="the server is shutting down")

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

    def find_state(self, result: QualityResult, now: datetime) -> str:
        """Return the result's state, or `stale` when the result is older than `stale_after`."""
        return "stale" if now - result.computed_at > self.stale_after else result.measures.state


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


def get_state(scope: Scope) -> State:
    """Return the state of the process that serves this request."""
    state: State = scope["state"][STATE_KEY]
    return state
