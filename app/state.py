"""What the lifespan hands to the request handlers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import asyncpg
from starlette.types import Scope

from app.database.migrate import SchemaState
from app.prediction_log.log import PredictionLog
from app.quality.queries import QualityResult
from app.quality.refresh import QualitySettings
from app.serving.reloading import Reloader
from app.serving.repository import ModelRepository
from app.settings import Durability


@dataclass(slots=True)
class Lifecycle:
    """What changes in the life of the process and readiness depends on, with when it began."""

    stopping_since: datetime | None = None
    schema: SchemaState | None = None
    """None: PostgreSQL has not been reached since the start."""
    schema_since: datetime = field(default_factory=lambda: datetime.now(UTC))
    default_unclear_since: datetime | None = None

    def begin_stop(self) -> None:
        """Note that the server is shutting down."""
        self.stopping_since = self.stopping_since or datetime.now(UTC)

    def note_schema(self, schema: SchemaState) -> None:
        """Note what the database's schema was found to be."""
        if schema != self.schema:
            self.schema, self.schema_since = schema, datetime.now(UTC)

    def note_default(self, *, is_unclear: bool) -> None:
        """Note whether the next start would refuse to choose a default model."""
        self.default_unclear_since = (self.default_unclear_since or datetime.now(UTC)) if is_unclear else None


@dataclass(slots=True)
class Scoreboard:
    """The latest results that this replica has read: what it shows, also while the database is away."""

    stale_after: timedelta
    results: Sequence[QualityResult] = ()

    def find_state(self, result: QualityResult, now: datetime) -> str:
        """Return the result's state, `stale` when it is too old to say anything of now."""
        return "stale" if now - result.computed_at > self.stale_after else result.measures.state


@dataclass(frozen=True, slots=True)
class State:
    """Handles of everything that is open while the server runs; under the key `scorekeeper` of the lifespan state.

    `loop` is the running one: until Python 3.12 asking asyncio for it is a system call.
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
    state: State = scope["state"]["scorekeeper"]
    return state
