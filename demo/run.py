"""`make demo`: run the server, PostgreSQL, Prometheus if it is installed, and an endless replay, until Ctrl-C."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2

ROOT = Path(__file__).parent.parent

READY_SECONDS = 120.0
"""Limit for the start of the server; the first start creates a database."""

STOP_SECONDS = 45.0
"""Limit for a process to stop; the server needs this long at most."""

REPLAY = ("--loop", "--rate=20", "--start=19000", "--rows=12000", "--label-delay=20", "--label-share=0.9")
"""As in compose.yaml: one pass over the rows takes ten minutes; the data drifts in its second half."""

SETTINGS = {
    "QUALITY_WINDOWS": "5m,1h,24h",
    "F1_INTERVAL_SECONDS": "5",
    "F1_OBJECTIVE": "0.915",
    "RETENTION_DAYS": "7",
    "ACCESS_LOG": "false",
}
"""As in compose.yaml, unless the environment has other values: short windows make changes visible."""

NO_PROMETHEUS = (
    "Prometheus is not installed, the demo runs without it (Debian, Ubuntu: apt install prometheus; macOS: brew)"
)


async def main() -> int:
    """Start the processes in order, wait for Ctrl-C or for one of them to end, and stop them in reverse order."""
    parser = argparse.ArgumentParser(prog="demo/run.py", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="the port of the server")
    parser.add_argument("--prometheus-port", type=int, default=9090)
    options = parser.parse_args()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = f"http://127.0.0.1:{options.port}"
    app = (sys.executable, "-m", "app")
    async with AsyncExitStack() as stack:
        serve = await stack.enter_async_context(
            running(*app, "serve", f"--port={options.port}", environment={**SETTINGS, **os.environ})
        )
        if not await wait_ready(server, serve, stopping):
            return int(not stopping.is_set())
        processes = [serve]
        if command := prepare_prometheus(options.port, options.prometheus_port):
            processes.append(await stack.enter_async_context(running(*command)))
        processes.append(await stack.enter_async_context(running(*app, "replay", f"--url={server}", *REPLAY)))
        say(f"the model's page: {server}; labels come 20 s after their predictions")
        say(f"Prometheus: http://127.0.0.1:{options.prometheus_port}" if command else NO_PROMETHEUS)
        say("Ctrl-C stops everything; the data stays in DATA_DIR (./data)")
        return await wait_end(processes, stopping)


def prepare_prometheus(app_port: int, port: int) -> tuple[str, ...] | None:
    """Write prometheus.yml with this demo's addresses; return the command, None when Prometheus is not installed."""
    program = shutil.which("prometheus")
    if program is None:
        return None
    directory = Path(os.environ.get("DATA_DIR") or "data").absolute() / "prometheus"
    directory.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "prometheus.yml").read_text().replace("app:8000", f"127.0.0.1:{app_port}")
    text = text.replace("localhost:9090", f"127.0.0.1:{port}").replace("prometheus/*", f"{ROOT}/prometheus/*")
    text = text.replace("${RUNBOOK_URL}", f"http://127.0.0.1:{app_port}/runbook")
    text = text.replace("${DASHBOARD_URL}", "http://localhost:3000")  # the demo has no Grafana, compose.yaml has
    configuration = directory / "prometheus.yml"
    configuration.write_text(text.replace("alertmanager:9093", "127.0.0.1:9093"))
    return (
        program,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )


@asynccontextmanager
async def running(
    *command: str, environment: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a process until exit, in its own session: Ctrl-C must not reach it, since processes stop in order."""
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def wait_ready(server: str, process: asyncio.subprocess.Process, stopping: asyncio.Event) -> bool:
    """Wait until the server is ready; return False when it has ended, takes too long, or the demo is to stop."""
    deadline = time.monotonic() + READY_SECONDS
    async with httpx2.AsyncClient(base_url=server, timeout=5) as client:
        while process.returncode is None and not stopping.is_set() and time.monotonic() < deadline:
            try:
                if (await client.get("/health/ready")).status_code == 200:
                    return True
            except httpx2.TransportError:
                pass  # it does not listen yet
            await asyncio.sleep(0.1)
    return False


async def wait_end(processes: list[asyncio.subprocess.Process], stopping: asyncio.Event) -> int:
    """Wait for a signal (status 0), or until a process ends by itself (status 1); return the exit status."""
    waiters = [asyncio.create_task(process.wait()) for process in processes]
    signalled = asyncio.create_task(stopping.wait())
    await asyncio.wait([*waiters, signalled], return_when=asyncio.FIRST_COMPLETED)
    for process in processes:
        if process.returncode is not None and not stopping.is_set():
            say(f"a process of the demo has ended with status {process.returncode}; the demo stops")
    for task in (*waiters, signalled):
        task.cancel()
    return int(not stopping.is_set())


def say(line: str) -> None:
    """Print a line for the user."""
    print(f"demo: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
