"""POST /predict with single rows, compared with a bare uvicorn: `python benchmarks/predict.py`.

The server runs on the first core, wrk and PostgreSQL on the second. The servers take turns. The result is a ratio of
CPU time per request in the server process, bare server / this server, the median of the rounds. The server has its
shipped settings, with the access log going to a file; `quiet` has no access log. `--before DIR` measures a second
checkout, such as a worktree of an earlier commit, in the same rounds (`before` and `before, quiet`).
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
SERVER_CORE, OTHER_CORE = "0", "1"
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"features": [12638.0, 0.4879, 21.0, 4.2246, 10.0]}'
done = function(summary, latency, requests)
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""
RESULT = re.compile(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)")


@dataclass(frozen=True, slots=True)
class Round:
    """One run of wrk against one server."""

    requests: int
    seconds: float
    errors: int
    cpu_microseconds: float
    p50_ms: float
    p99_ms: float


def measure(servers: Mapping[str, tuple[str, int]], connections: int, seconds: int, script: Path) -> dict[str, Round]:
    """Run wrk once against each server; `servers` is {name: (url, pid)}."""
    rounds = {}
    for name, (url, pid) in servers.items():
        before = read_cpu_seconds(pid)
        command = [
            "taskset",
            "-c",
            OTHER_CORE,
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "-s",
            str(script),
            url,
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        used = read_cpu_seconds(pid) - before
        found = RESULT.search(output)
        assert found is not None, output
        requests, duration, status_errors, socket_errors, p50, p99 = map(int, found.groups())
        rounds[name] = Round(
            requests, duration / 1e6, status_errors + socket_errors, used / requests * 1e6, p50 / 1e3, p99 / 1e3
        )
    return rounds


def read_cpu_seconds(pid: int) -> float:
    """Return the user and system time of a process with all its threads, without its children, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serve(application: str, port: int, environment: Mapping[str, str], directory: Path) -> Iterator[int]:
    """Run a server on the server's core until exit; yield its pid.

    `app:main` is this server as in production, `unlogged` the same without a log; uvicorn runs any other application.
    """
    command = ["taskset", "-c", SERVER_CORE, sys.executable]
    match application:
        case "app:main":
            command += ["-m", "app", "serve"]
        case "unlogged":
            command += [str(HERE / "unlogged.py"), "serve"]
        case _:
            command += ["-m", "uvicorn", application, "--log-level", "warning", "--no-access-log"]
    command += ["--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(directory), **environment}
    if environment.get("ACCESS_LOG") == "false" and takes_flag(command, "--no-access-log", environment, directory):
        command += ["--no-access-log"]  # a checkout that is older than the setting
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=directory, env=environment, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/health/ready")
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def takes_flag(command: Sequence[str], flag: str, environment: Mapping[str, str], directory: Path) -> bool:
    """Return whether the help of a command mentions a flag."""
    asked = subprocess.run(
        [*command, "--help"], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    return flag in asked.stdout


@contextmanager
def database() -> Iterator[str]:
    """Run PostgreSQL on the other core; yield its DSN."""
    code = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom app.database.embedded import run_embedded_server\n"
        "async def main():\n async with run_embedded_server(Path(sys.argv[1])) as url:\n"
        "  print(url, flush=True); await asyncio.to_thread(sys.stdin.read)\n"
        "asyncio.run(main())"
    )
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        command = ["taskset", "-c", OTHER_CORE, sys.executable, "-c", code, directory]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate("", timeout=60)


def wait_for(url: str) -> None:
    """Wait until the server answers 200; raise TimeoutError after a minute."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(url)


def report(results: Sequence[dict[str, Round]], connections: int) -> None:
    """Print a line per server with the medians of the rounds."""
    by_name: defaultdict[str, list[Round]] = defaultdict(list)
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for rounds in results:
        for name, one in rounds.items():
            by_name[name].append(one)
            shares[name].append(rounds["bare"].cpu_microseconds / one.cpu_microseconds)
    for name, rounds_of_one in by_name.items():
        print(
            f"| {connections} | {name} | {statistics.median(shares[name]):.2f} "
            f"| {statistics.median(r.cpu_microseconds for r in rounds_of_one):.0f} "
            f"| {statistics.median(r.requests / r.seconds for r in rounds_of_one):,.0f} "
            f"| {statistics.median(r.p50_ms for r in rounds_of_one):.2f} "
            f"| {statistics.median(r.p99_ms for r in rounds_of_one):.2f} "
            f"| {sum(r.errors for r in rounds_of_one)} |",
            flush=True,
        )


def list_servers(levels: Sequence[str], before: Path | None) -> list[tuple[str, str, str, Path]]:
    """Return (name, level, ACCESS_LOG, checkout) of each server that is compared with the bare one."""
    checkouts = [("", ROOT), *([("before, ", before.resolve())] if before else [])]
    return [
        (f"{whose}{level}{quiet}", level, access_log, checkout)
        for level in levels
        for whose, checkout in checkouts
        for quiet, access_log in (("", "true"), (", quiet", "false"))
    ]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--levels", nargs="+", default=["fsync"])
    parser.add_argument("--before", type=Path, metavar="DIR", help="another checkout to compare with")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    with ExitStack() as stack:
        url = stack.enter_context(database())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (work / "predict.lua").write_text(LUA)
        servers = {"bare": ("http://127.0.0.1:9100/predict", stack.enter_context(serve("bare:main", 9100, {}, HERE)))}
        for port, (name, level, access_log, checkout) in enumerate(list_servers(options.levels, options.before), 9101):
            environment = {"DATABASE_URL": url, "DATA_DIR": str(work / str(port)), "DURABILITY": level}
            environment["ACCESS_LOG"] = access_log
            pid = stack.enter_context(serve("app:main", port, environment, checkout))
            servers[name] = (f"http://127.0.0.1:{port}/predict", pid)
        print("| connections | server | share of bare | CPU µs/request | requests/s | p50 ms | p99 ms | errors |")
        print("|---|---|---|---|---|---|---|---|")
        for connections in options.connections:
            measure(servers, connections, 1, work / "predict.lua")
            report(
                [measure(servers, connections, options.seconds, work / "predict.lua") for _ in range(options.rounds)],
                connections,
            )


if __name__ == "__main__":
    main()
