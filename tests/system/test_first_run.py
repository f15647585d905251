"""What a stranger does first, in a fresh clone and a fresh environment: make run, make replay, an installed wheel."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.support.processes import ROOT, WAIT_SECONDS, find_free_port, wait_until
from tests.support.programs import INSTALL_SECONDS, clean_environment, run

pytestmark = pytest.mark.timeout(1000)  # packages are installed


async def test_make_run_answers_the_readmes_requests_and_replay_agrees(open_path: Path) -> None:
    clone = open_path / "scorekeeper"
    run("git", "clone", "--quiet", str(ROOT), str(clone), cwd=open_path)
    port = find_free_port()

    async with started("make", "run", f"PORT={port}", cwd=clone, port=port) as client:
        health = await client.get("/health")
        predicted = await client.post("/predict", json={"features": [1.5, 2.3, 3.1, 4.2, 5.0]})
        metrics = await client.get("/metrics")
        replayed = await asyncio.to_thread(run, "make", "replay", f"PORT={port}", "ROWS=2000", cwd=clone)

    assert health.json() == {"status": "ok", "reasons": []}
    assert predicted.status_code == 200
    assert "http_requests_total{" in metrics.text
    assert "the two F1 values agree" in replayed


async def test_make_run_continues_with_its_data(open_path: Path) -> None:
    clone = open_path / "scorekeeper"
    run("git", "clone", "--quiet", str(ROOT), str(clone), cwd=open_path)
    port = find_free_port()
    async with started("make", "run", f"PORT={port}", cwd=clone, port=port) as client:
        first = (await client.post("/predict", json={"features": [1.5, 2.3, 3.1, 4.2, 5.0]})).json()

    async with started("make", "run", f"PORT={port}", cwd=clone, port=port) as client:
        found = await client.get(f"/predictions/{first['prediction_id']}")

    assert found.json()["score"] == first["score"]


async def test_installed_wheel_works_away_from_the_repository(open_path: Path) -> None:
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*build, "--wheel-dir", str(open_path), str(ROOT), cwd=open_path)
    run(sys.executable, "-m", "venv", "venv", cwd=open_path)
    wheel = next(open_path.glob("scorekeeper-*.whl"))
    run("venv/bin/pip", "install", "--quiet", "--require-hashes", "-r", str(ROOT / "requirements.lock"), cwd=open_path)
    run("venv/bin/pip", "install", "--quiet", "--no-deps", str(wheel), cwd=open_path)
    port = find_free_port()

    async with started("venv/bin/uvicorn", "app:main", "--port", str(port), cwd=open_path, port=port) as client:
        replayed = await asyncio.to_thread(
            run, "venv/bin/scorekeeper", "replay", "--url", str(client.base_url), "--rows", "200", cwd=open_path
        )
        page = await client.get("/page/swagger-ui-bundle.js")

    assert page.status_code == 200
    assert "the two F1 values agree" in replayed


@asynccontextmanager
async def started(*command: str, cwd: Path, port: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a server as the leader of a process group, wait until it is ready; end the group as Ctrl-C does."""
    log = cwd / "server.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=clean_environment(), stdout=output, stderr=output, start_new_session=True
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await wait_until(lambda: is_ready(client, process, log), seconds=INSTALL_SECONDS, what=log.read_text)
            yield client
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGINT)
        async with asyncio.timeout(WAIT_SECONDS):
            await process.wait()


async def is_ready(client: httpx2.AsyncClient, process: asyncio.subprocess.Process, log: Path) -> bool:
    """Tell whether the server is ready; fail when it has ended."""
    assert process.returncode is None, log.read_text()
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx2.TransportError:
        return False
