"""What a failed insert means: try again, tell the operator, or find the one row at fault."""

from typing import Literal

from asyncpg import exceptions as pg

FailureKind = Literal["transient", "configuration", "partition", "poison"]

CONFIGURATION = (
    pg.SyntaxOrAccessError,  # class 42: no such table, column or function, no permission
    pg.InvalidCatalogNameError,
    pg.InvalidAuthorizationSpecificationError,
    pg.TriggeredActionError,
    pg.PLPGSQLError,
)
"""The schema, the grants or a trigger of ours is wrong: no row is at fault, and only a person can mend it."""

NO_PARTITION = "no partition of relation"
"""How PostgreSQL begins the message when no partition takes a row; it shares its code with a check that fails."""


def classify_failure(error: BaseException) -> FailureKind:
    """Sort an error of an insert; what is unknown counts as transient, since no row may be given up for it."""
    if isinstance(error, CONFIGURATION):
        return "configuration"
    if isinstance(error, pg.CheckViolationError) and str(error).startswith(NO_PARTITION):
        return "partition"
    if isinstance(error, pg.DataError | pg.IntegrityConstraintViolationError):
        return "poison"
    return "transient"
