"""Run the migrations on the configured database, in one transaction, one process at a time."""

import asyncio
import sys
from logging.config import fileConfig

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from app.database.connecting import connect as connect_to_postgresql
from app.database.pool import ConnectionFailure, describe_connection_error, open_database_url
from app.database.queries import OLD_REVISIONS, VERSION_TABLE
from app.errors import StartupError
from app.settings import Settings

MIGRATION_LOCK = 0x53434F5245
"""Key of the advisory lock with which only one process migrates at a time ("SCORE" in ASCII)."""


IS_OURS = f"""
SELECT EXISTS (SELECT FROM alembic_version) AND to_regclass('prediction_label_history') IS NOT NULL
    AND to_regclass('model_version') IS NOT NULL
    AND NOT EXISTS (SELECT FROM alembic_version WHERE version_num NOT IN {OLD_REVISIONS})
"""  # noqa: S608  # made from constants only

MAKE_VERSION_TABLE = """
CREATE TABLE IF NOT EXISTS {table} (version_num varchar(32) NOT NULL CONSTRAINT {table}_pkc PRIMARY KEY)
"""


def migrate(connection: Connection) -> None:
    """Migrate in a transaction that holds the lock; a process that waits for it (at most 60 s) finds nothing to do."""
    context.configure(connection=connection, target_metadata=None, version_table=VERSION_TABLE)
    with context.begin_transaction():
        connection.execute(text("SET LOCAL lock_timeout = '60s'"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        has_old = is_there(connection, "alembic_version")
        is_ours = has_old and bool(connection.scalar(text(IS_OURS)))
        if is_ours and not is_there(connection, VERSION_TABLE):
            connection.execute(text(MAKE_VERSION_TABLE.format(table=VERSION_TABLE)))
            connection.execute(text(f"INSERT INTO {VERSION_TABLE} SELECT version_num FROM alembic_version"))  # noqa: S608
        context.run_migrations()
        if is_ours or not has_old:
            tell_older_releases(connection)


def is_there(connection: Connection, table: str) -> bool:
    """Return whether the search path finds a table."""
    return bool(connection.scalar(text(f"SELECT to_regclass('{table}') IS NOT NULL")))


def tell_older_releases(connection: Connection) -> None:
    """After a downgrade, write the revision where the release that fits it looks for it.

    Without one `alembic_version` stays as it is: a replica of the release before may start again beside this one.
    """
    if not is_there(connection, VERSION_TABLE):
        return
    revision = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    if revision in OLD_REVISIONS:
        connection.execute(text(MAKE_VERSION_TABLE.format(table="alembic_version")))
    if is_there(connection, "alembic_version") and (revision is None or revision in OLD_REVISIONS):
        connection.execute(text("DELETE FROM alembic_version"))
        connection.execute(
            text(f"INSERT INTO alembic_version SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608
        )


async def migrate_online() -> None:
    """Connect and migrate. asyncpg connects, because it accepts DSNs with several hosts, unlike SQLAlchemy's URLs."""
    settings = Settings.from_env()
    async with open_database_url(settings.database_url, settings.data_dir) as url:

        async def connect() -> asyncpg.Connection:
            try:
                return await connect_to_postgresql(url)
            except ConnectionFailure as error:
                raise StartupError(describe_connection_error(url, error)) from error

        engine = create_async_engine("postgresql+asyncpg://", async_creator=connect)
        try:
            async with engine.connect() as connection:
                await connection.run_sync(migrate)
                await connection.commit()
        finally:
            await engine.dispose()


if context.is_offline_mode():
    sys.exit("offline mode is not supported: migrations need a connection to PostgreSQL")
if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)
try:
    asyncio.run(migrate_online())
except StartupError as error:
    sys.exit(f"error: {error}")
except DBAPIError as error:
    sys.exit(f"error: {str(error.orig).splitlines()[0]}")
