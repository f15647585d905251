"""What a failed insert means: try again, tell the operator, or find the one row at fault."""

from collections.abc import Mapping
from typing import Literal

from asyncpg import exceptions as pg

from app.errors import Reason

FailureKind = Literal["transient", "configuration", "partition", "poison"]

CONFIGURATION = (
    pg.SyntaxOrAccessError,  # class 42: no such table, column or function, no permission
    pg.InvalidCatalogNameError,
    pg.InvalidAuthorizationSpecificationError,
    pg.TriggeredActionError,
    pg.PLPGSQLError,
)
"""The schema, the grants or a trigger of ours is wrong: no row is at fault, and only a person can mend it."""

ROW_AT_FAULT = (pg.DataError, pg.IntegrityConstraintViolationError)
"""Classes 22 and 23: a value of the row is not taken, unless a trigger says so of what it writes itself."""


def classify_failure(error: BaseException) -> FailureKind:
    """Sort an error of an insert; what is unknown counts as transient, since no row may be given up for it."""
    if isinstance(error, CONFIGURATION) or (isinstance(error, ROW_AT_FAULT) and is_raised_by_trigger(error)):
        return "configuration"
    if isinstance(error, pg.CheckViolationError) and error.constraint_name is None:  # any other check has a name
        return "partition"
    if isinstance(error, ROW_AT_FAULT):
        return "poison"
    return "transient"


def is_raised_by_trigger(error: pg.PostgresError) -> bool:
    """Return whether the error comes out of a function: the insert itself calls none."""
    return "pl/pgsql" in (error.context or "").lower()  # the one word that no translation of PostgreSQL changes


EXPLANATIONS: Mapping[FailureKind, str] = {
    "transient": "it cannot be reached or cannot answer",
    "configuration": "its schema, grants or triggers are not as this release needs them",
    "partition": "a partition is missing and cannot be made",
    "poison": "it refuses a row",
}
"""Without PostgreSQL's own words, which are for the server's log only."""


def explain_failure(kind: FailureKind) -> Reason:
    """Return what /health says of a failure."""
    return Reason(code=f"log_{kind}", detail=f"PostgreSQL takes no predictions: {EXPLANATIONS[kind]}")
