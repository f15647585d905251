"""Classify failed inserts: try again, tell the operator, make a partition, or find the row at fault."""

from collections.abc import Mapping
from typing import Literal

from asyncpg import InterfaceError
from asyncpg import exceptions as pg

from app.database.connecting import EncodingError
from app.errors import Reason

FailureKind = Literal["transient", "configuration", "partition", "poison"]

CONFIGURATION = (
    pg.SyntaxOrAccessError,  # class 42: no such table, column or function, no permission
    pg.InvalidCatalogNameError,
    pg.InvalidAuthorizationSpecificationError,
    pg.TriggeredActionError,
    pg.PLPGSQLError,
    pg.CardinalityViolationError,  # class 21: a table of one row has two
    pg.FeatureNotSupportedError,
    EncodingError,
)
"""The schema, the grants or a trigger is wrong: no row is at fault, and only a person can correct it."""

UNPREPARED = "55000"
"""A statement needs what the database lacks, such as a key to replicate by; the class has errors of other kinds too."""

ROW_AT_FAULT = (pg.DataError, pg.IntegrityConstraintViolationError)
"""Classes 22 and 23: PostgreSQL refuses a value of the row, unless the error is about a row that a trigger writes."""


def classify_failure(error: BaseException) -> FailureKind:
    """Return the kind of an insert's error; an unknown error is transient, so that its rows are tried again."""
    if isinstance(error, CONFIGURATION) or (isinstance(error, ROW_AT_FAULT) and _is_raised_by_trigger(error)):
        return "configuration"
    if isinstance(error, pg.PostgresError) and error.sqlstate == UNPREPARED:
        return "configuration"
    if isinstance(error, pg.CheckViolationError) and error.constraint_name is None:  # all other checks have names
        return "partition"
    if isinstance(error, ROW_AT_FAULT):
        return "poison"
    return "transient"


def _is_raised_by_trigger(error: pg.PostgresError) -> bool:
    """Return whether a function raised the error; the insert itself calls none, only triggers do."""
    return "pl/pgsql" in (error.context or "").lower()  # the same word in all languages of PostgreSQL's messages


EXPLANATIONS: Mapping[FailureKind, str] = {
    "transient": "it cannot be reached or cannot answer",
    "configuration": "its schema, grants or triggers do not fit this release",
    "partition": "a partition is missing and cannot be created",
    "poison": "it refuses a row",
}
"""For clients; PostgreSQL's own messages are only for the server's log."""


def explain_job_failure(error: Exception) -> str:
    """Return why a job failed, without PostgreSQL's own message."""
    if not isinstance(error, OSError | pg.PostgresError | InterfaceError):
        return f"an error in this server: {type(error).__name__}"
    kind = classify_failure(error)
    return f"PostgreSQL: {EXPLANATIONS['configuration' if kind in ('partition', 'poison') else kind]}"


def explain_failure(kind: FailureKind) -> Reason:
    """Return the reason that /health shows for a failure."""
    return Reason(code=f"log_{kind}", detail=f"PostgreSQL does not store predictions: {EXPLANATIONS[kind]}")
