"""What the lifespan hands to the request handlers."""

import asyncio
from dataclasses import dataclass

import asyncpg
from starlette.types import Scope

from app.database.migrate import SchemaState
from app.prediction_log.log import PredictionLog
from app.serving.reloading import Reloader
from app.serving.repository import ModelRepository
from app.settings import Durability, F1Average, QualityWindow


@dataclass(slots=True)
class Lifecycle:
    """What changes in the life of the process and readiness depends on."""

    stopping: bool = False
    schema: SchemaState | None = None
    """None: PostgreSQL has not been reached since the start."""


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
    windows: tuple[QualityWindow, ...]
    f1_average: F1Average | None


def get_state(scope: Scope) -> State:
    """Return the state of the process that serves this request."""
    state: State = scope["state"]["scorekeeper"]
    return state
