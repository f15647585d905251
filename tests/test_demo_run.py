"""`make demo` starts everything, feeds it, and ends all of it on Ctrl-C."""

import asyncio
import os
import runpy
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import yaml

from app.commands.parser import parse_arguments
from tests.support.compose_file import SERVICES
from tests.support.processes import ROOT, find_free_port, wait_until

DEMO = runpy.run_path(str(ROOT / "demo" / "run.py"))

PROMETHEUS = """#!/bin/sh
echo $$ "$@" > "{record}"
exec sleep 600
"""
"""A program in Prometheus's place, which notes how it was called and then runs on; the real one is in tests/system."""


async def test_demo_predicts_and_ends_all_of_it_on_ctrl_c(database_url: str, tmp_path: Path) -> None:
    port = find_free_port()

    async with started_demo(database_url, tmp_path, port, path="/nowhere") as process:
        await wait_until(lambda: count_predictions(port), what=lambda: "predictions")
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()

    assert process.returncode == 0
    assert DEMO["NO_PROMETHEUS"] in output.decode()
    assert not await is_listening(port)


async def test_demo_gives_prometheus_the_addresses_of_this_machine(database_url: str, tmp_path: Path) -> None:
    port = find_free_port()
    record = tmp_path / "record"
    program = tmp_path / "bin" / "prometheus"
    program.parent.mkdir()
    program.write_text(PROMETHEUS.format(record=record))
    program.chmod(0o755)

    async with started_demo(database_url, tmp_path, port, path=f"{program.parent}:/usr/bin:/bin") as process:
        await wait_until(lambda: has_lines(record), what=lambda: "Prometheus is started")
        process.send_signal(signal.SIGTERM)
        await process.communicate()

    number, configuration, *_ = record.read_text().split()
    content = yaml.safe_load(Path(configuration.removeprefix("--config.file=")).read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in content["scrape_configs"]}
    assert jobs["scorekeeper"] == [f"127.0.0.1:{port}"]
    assert any(Path("/").glob(pattern.removeprefix("/")) for pattern in content["rule_files"] if pattern[0] == "/")
    assert not Path("/proc", number).exists()


def test_demo_is_that_of_the_compose_file() -> None:
    compose = parse_arguments(SERVICES["demo"]["command"][1:])
    ours = parse_arguments(["replay", f"--url={compose.url}", *DEMO["REPLAY"]])
    windows = {name: SERVICES["app"]["environment"][name] for name in DEMO["SETTINGS"]}

    assert vars(ours) == vars(compose)
    assert windows == {name: f"${{{name}:-{value}}}" for name, value in DEMO["SETTINGS"].items()}


@asynccontextmanager
async def started_demo(
    database_url: str, directory: Path, port: int, *, path: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the demo as the leader of a session of its own; kill it when a test leaves it running."""
    environment = {**os.environ, "DATABASE_URL": database_url, "DATA_DIR": str(directory / "data"), "PATH": path}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "demo/run.py", "--port", str(port), "--prometheus-port", str(find_free_port())),
        env=environment,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.communicate()


async def count_predictions(port: int) -> int:
    """Count what the server has stored of the newest rows; 0 while it does not answer."""
    try:
        async with httpx2.AsyncClient() as client:
            response = await client.get(f"http://127.0.0.1:{port}/predictions")
    except httpx2.TransportError:
        return 0
    return len(response.json()["predictions"]) if response.status_code == 200 else 0


async def has_lines(path: Path) -> bool:
    """Tell whether a file has been written."""
    return path.exists() and path.read_text().endswith("\n")


async def is_listening(port: int) -> bool:
    """Tell whether anybody listens on a port of this machine."""
    try:
        async with httpx2.AsyncClient() as client:
            await client.get(f"http://127.0.0.1:{port}/health/live")
    except httpx2.ConnectError:
        return False
    return True
