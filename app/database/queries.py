"""What is asked of the database about itself."""

from app.database.pool import Connection

SCHEMA_REVISION_TABLE = "SELECT to_regclass('alembic_version') IS NOT NULL"
SCHEMA_REVISION = "SELECT version_num FROM alembic_version"


async def read_schema_revision(connection: Connection) -> str | None:
    """Return the Alembic revision that the database is at, None when it was never migrated."""
    if not await connection.fetchval(SCHEMA_REVISION_TABLE):
        return None
    revision: str | None = await connection.fetchval(SCHEMA_REVISION)
    return revision
