"""One application for the many requests that are to be refused: none of them may leave a trace for the next."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx2
import pytest
from asgi_lifespan import LifespanManager

from app import main
from tests.conftest import execute, with_database
from tests.support.answers import JSON_HEADERS, count_written
from tests.support.processes import WAIT_SECONDS

shared_loop = pytest.mark.asyncio(loop_scope="module")
"""For tests that use an application which lives as long as their module."""


@dataclass(frozen=True)
class Refusing:
    """A client of the application, and a connection to see that nothing is written."""

    client: httpx2.AsyncClient
    connection: asyncpg.Connection

    async def post(
        self, path: str, body: bytes | dict[str, object], headers: dict[str, str] = JSON_HEADERS
    ) -> httpx2.Response:
        """Send what is to be refused, and check that no table has more rows than before."""
        before = await count_written(self.connection)
        if isinstance(body, bytes):
            answer = await self.client.post(path, content=body, headers=headers)
        else:
            answer = await self.client.post(path, json=body)
        assert await count_written(self.connection) == before, f"rows were written, the answer is {answer.text}"
        return answer


@asynccontextmanager
async def open_refusing(postgres: str, directory: Path, **settings: str) -> AsyncIterator[Refusing]:
    """Open the application on a database of its own, with its real lifespan."""
    name = f"test_{secrets.token_hex(6)}"
    await execute(postgres, f"CREATE DATABASE {name} TEMPLATE template")
    url = with_database(postgres, name)
    connection = await asyncpg.connect(url)
    with pytest.MonkeyPatch.context() as patch:
        environment = {"DATABASE_URL": url, "DATA_DIR": str(directory), "ACCESS_LOG": "false", **settings}
        for variable, value in environment.items():
            patch.setenv(variable, value)
        manager = LifespanManager(main, startup_timeout=WAIT_SECONDS, shutdown_timeout=WAIT_SECONDS)
        await manager.__aenter__()  # the environment is read here, and must be given back before the tests run
    try:
        transport = httpx2.ASGITransport(manager.app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=WAIT_SECONDS) as client:
            yield Refusing(client, connection)
    finally:
        await manager.__aexit__()
        await connection.close()
        await execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")
