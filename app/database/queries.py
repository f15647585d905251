"""The type of connection for all queries, and SQL about the database itself."""

import asyncpg
from asyncpg.pool import PoolConnectionProxy

Connection = asyncpg.Connection | PoolConnectionProxy
"""A single connection, or one from a pool."""


def read_count(status: str) -> int:
    """Return the number of rows in the status of a statement, such as `INSERT 0 5`."""
    return int(status.rpartition(" ")[2])


SCHEMA_REVISION_TABLE = "SELECT to_regclass('alembic_version') IS NOT NULL"
SCHEMA_REVISION = "SELECT version_num FROM alembic_version"


async def read_schema_revision(connection: Connection) -> str | None:
    """Return the database's Alembic revision, None when it was never migrated."""
    if not await connection.fetchval(SCHEMA_REVISION_TABLE):
        return None
    revision: str | None = await connection.fetchval(SCHEMA_REVISION)
    return revision


EMBEDDED_DATABASE = "mlops"
CREATE_DATABASE = f"CREATE DATABASE {EMBEDDED_DATABASE}"


async def create_embedded_database(connection: Connection, timeout: float) -> None:
    """Create the database of an embedded server."""
    await connection.execute(CREATE_DATABASE, timeout=timeout)
