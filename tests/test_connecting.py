"""Connections to databases as people have them: parameters of managed hosts, other encodings, isolation levels."""

import asyncio
import re
import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from app.database.connecting import CONNECT_TIMEOUT_SECONDS, EncodingError, connect, read_address
from app.database.migrate import prepare_schema, read_schema_state
from app.database.pool import open_pool
from app.errors import StartupError
from app.prediction_log.inserter import Inserter, InsertError
from app.quality.labels import take_labels
from tests.conftest import OpenClient, execute, with_database
from tests.support.programs import run_alembic, run_postgres
from tests.support.records import count_rows, make_label, make_record, register_demo, store

PARAMETERS = [
    "connect_timeout=10",
    "connect_timeout=0",
    "connect_timeout=soon",
    "channel_binding=prefer",
    "channel_binding=disable",
    "channel_binding=maybe",
    "keepalives=1&keepalives_idle=30&keepalives_interval=10&keepalives_count=3&tcp_user_timeout=30000",
    "gssencmode=disable",
    "gssencmode=prefer",
    "gssencmode=perhaps",
    "load_balance_hosts=random",
    "load_balance_hosts=all",
    "fallback_application_name=app&sslcompression=0&sslsni=1&sslcertmode=allow",
    "min_protocol_version=3.0&max_protocol_version=3.2",
    "application_name=ours",
    "client_encoding=auto",
    "options=-c%20search_path%3Dpublic",
    "target_session_attrs=read-write",
    "sslmode=disable",
    "sslmode=perhaps",
]
"""Whatever psql accepts in a URL is accepted, whatever it refuses is refused."""


async def is_accepted(url: str) -> bool:
    try:
        connection = await connect(url)
    except (StartupError, asyncpg.InterfaceError):
        return False
    await connection.close()
    return True


@pytest.mark.parametrize("parameters", PARAMETERS)
async def test_parameters_are_accepted_as_psql_accepts_them(postgres: str, parameters: str) -> None:
    url = f"{postgres}&{parameters}"

    status, output = await run_postgres("psql", "--no-psqlrc", "--command=SELECT 1", url, newest=True)

    assert await is_accepted(url) == (status == 0), output


@pytest.mark.parametrize(
    ("query", "timeout"), [("", CONNECT_TIMEOUT_SECONDS), ("?connect_timeout=10", 10), ("?connect_timeout=1", 2)]
)
def test_connect_timeout_is_understood(query: str, timeout: float) -> None:
    address = read_address(f"postgresql://me@host/mlops{query}")

    assert (address.url, address.timeout) == ("postgresql://me@host/mlops", timeout)


def test_strings_of_managed_hosts_lose_only_what_is_not_for_the_server() -> None:
    query = "sslmode=require&channel_binding=require&options=endpoint%3Dep-cool&connect_timeout=15&keepalives=1"

    address = read_address(f"postgresql://me:p%40ss@host:5432,other:5433/mlops?{query}")

    parts = urlsplit(address.url)
    assert parts._replace(query="").geturl() == "postgresql://me:p%40ss@host:5432,other:5433/mlops"
    assert parse_qs(parts.query) == {"sslmode": ["require"], "options": ["endpoint=ep-cool"]}
    assert address.timeout == 15


def test_binding_that_is_required_is_told_to_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    read_address("postgresql://me:secret@host/mlops?channel_binding=require")

    assert len(caplog.messages) == 1
    assert "channel_binding=require" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("query", "rest", "options"),
    [
        ("ssl=true", "?sslmode=require", {}),
        ("requiressl=1", "?sslmode=require", {}),
        ("sslrootcert=system", "", {"ssl": True}),
        ("sslrootcert=system&sslmode=verify-full", "", {"ssl": True}),
    ],
)
def test_other_spellings_of_tls_are_understood(query: str, rest: str, options: dict[str, bool]) -> None:
    address = read_address(f"postgresql://host/mlops?{query}")

    assert (address.url, address.options) == (f"postgresql://host/mlops{rest}", options)


@pytest.mark.parametrize("query", ["sslrootcert=system&sslmode=require", "hostaddr=127.0.0.1", "require_auth=none"])
def test_parameter_that_must_not_be_ignored_is_refused(query: str) -> None:
    with pytest.raises(StartupError, match=r"^DATABASE_URL has ") as raised:
        read_address(f"postgresql://me:secret@host/mlops?{query}")

    assert "secret" not in str(raised.value)


@pytest.fixture
async def create_database(postgres: str) -> AsyncIterator[str]:
    """The name of a database that the test creates, and that is dropped here."""
    name = f"test_{secrets.token_hex(6)}"
    yield name
    await execute(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.mark.parametrize("encoding", ["LATIN1", "WIN1252", "SQL_ASCII", "EUC_JP"])
async def test_server_does_not_start_on_another_encoding(
    postgres: str, open_client: OpenClient, create_database: str, encoding: str
) -> None:
    name = create_database
    await execute(postgres, f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    url = with_database(postgres, name)

    with pytest.raises(StartupError, match=rf"has the encoding {encoding}, allowed is UTF8") as raised:
        async with open_client(DATABASE_URL=url, DURABILITY="fsync"):
            pass
    status, output = await run_alembic(url, "upgrade", "head")

    assert "\n" not in str(raised.value)
    assert (status != 0, output.count("\n"), encoding in output) == (True, 1, True)


async def test_rows_wait_when_the_database_turns_out_to_have_another_encoding(
    postgres: str, create_database: str
) -> None:
    """PostgreSQL was away at the start: the rows are kept, not put aside as refused."""
    await execute(postgres, f"CREATE DATABASE {create_database} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    async with open_pool(with_database(postgres, create_database), 1) as pool:
        with pytest.raises(InsertError) as raised:
            await Inserter(pool).insert([b"{}"])

    assert raised.value.kind == "configuration"
    assert isinstance(raised.value.__cause__, EncodingError)


READ_LEVEL = "SELECT current_setting('transaction_isolation')"


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
async def test_labels_of_writers_at_once_are_all_taken_whatever_the_default_isolation_is(
    database_url: str, connection: asyncpg.Connection, level: str
) -> None:
    name = urlsplit(database_url).path[1:]
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    await register_demo(connection)
    records = [make_record() for _ in range(20)]
    await store(connection, *records)
    async with open_pool(database_url, 6) as pool:

        async def take(writer: int) -> None:
            for record in records:
                async with pool.acquire() as one:
                    await take_labels(one, [make_label(record.prediction_id, str(writer % 2), datetime.now(UTC))])

        await asyncio.gather(*(take(writer) for writer in range(6)))
        async with pool.acquire() as one:
            alone = await one.fetchval(READ_LEVEL)
            async with one.transaction():
                inside = await one.fetchval(READ_LEVEL)

    assert (alone, inside) == ("read committed", "read committed")
    assert await count_rows(connection, "prediction_label") == len(records)


@asynccontextmanager
async def open_pooler(target: str) -> AsyncIterator[str]:
    """What PgBouncer does: refuse a parameter that it does not know, otherwise pass everything on. Yield its URL."""
    socket = Path(parse_qs(urlsplit(target).query)["host"][0]) / ".s.PGSQL.5432"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = await reader.readexactly(4)
        startup = await reader.readexactly(struct.unpack("!I", length)[0] - 4)
        if b"default_transaction_isolation" in startup:
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: default_transaction_isolation\0\0"
            writer.write(b"E" + struct.pack("!I", len(text) + 4) + text)
            writer.close()
            return
        from_server, to_server = await asyncio.open_unix_connection(str(socket))
        to_server.write(length + startup)
        async with asyncio.TaskGroup() as both:
            both.create_task(pass_on(reader, to_server))
            both.create_task(pass_on(from_server, writer))

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    parts = urlsplit(target)
    async with server:
        yield f"postgresql://{parts.username}:{parts.password}@127.0.0.1:{port}{parts.path}?sslmode=disable"


async def test_transactions_are_read_committed_behind_a_pooler_that_refuses_the_setting(
    database_url: str, connection: asyncpg.Connection
) -> None:
    name = urlsplit(database_url).path[1:]
    await connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    async with open_pooler(database_url) as url, open_pool(url, 1) as pool, pool.acquire() as one:
        async with one.transaction():
            inside = await one.fetchval(READ_LEVEL)
            async with one.transaction():  # a savepoint
                nested = await one.fetchval(READ_LEVEL)
        async with one.transaction(isolation="repeatable_read"), one.transaction():
            asked = await one.fetchval(READ_LEVEL)

    assert (inside, nested, asked) == ("read committed", "read committed", "repeatable read")


FOREIGN = "CREATE TABLE alembic_version AS SELECT '{}'::varchar(32) AS version_num"


@pytest.mark.parametrize("revision", ["ae1027a6acf", "0002", "9999"])
async def test_database_of_another_application_gets_our_tables_beside_its_own(
    empty_database_url: str, revision: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await execute(empty_database_url, FOREIGN.format(revision))

    state = await prepare_schema(empty_database_url, migrate=True)

    connection = await asyncpg.connect(empty_database_url)
    assert state == "current"
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == revision
    assert await count_rows(connection, "prediction_log") == 0
    assert await read_schema_state(connection) == "current"
    await connection.close()
    assert any(re.search("alembic_version .* another application", message) for message in caplog.messages)


async def test_revision_of_the_release_before_is_taken_over(database_url: str) -> None:
    """The release before finds its revision where it looks for it, also when it starts beside this one."""
    down, _ = await run_alembic(database_url, "downgrade", "0002")
    connection = await asyncpg.connect(database_url)
    told = await connection.fetchval("SELECT version_num FROM alembic_version")
    await connection.execute("DROP TABLE scorekeeper_version")  # as the release before has left it
    behind = await read_schema_state(connection)

    up, output = await run_alembic(database_url, "upgrade", "head")

    assert (down, told, behind, up) == (0, "0002", "behind", 0), output
    assert await read_schema_state(connection) == "current"
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == "0002"
    await connection.close()


async def test_timeline_is_watched_without_the_right_to_read_the_identifier(
    database_url: str, connection: asyncpg.Connection
) -> None:
    role, password = f"role_{secrets.token_hex(4)}", secrets.token_hex(8)
    refused = "pg_control_system()"
    await connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    seen = []
    try:
        parts = urlsplit(database_url)
        url = parts._replace(netloc=f"{quote(role)}:{password}@").geturl()
        async with open_pool(url, 1) as pool:
            for _ in range(2):
                await connection.execute(f"REVOKE EXECUTE ON FUNCTION {refused} FROM PUBLIC")
                seen.append(await Inserter(pool).watch_cluster())
                refused = "pg_walfile_name(pg_lsn)"
    finally:
        await connection.execute(f"DROP ROLE {role}")

    assert seen == ["PostgreSQL timeline 00000001", None]
