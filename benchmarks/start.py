"""Time from the start of the server's process until it is ready, and its memory: `python benchmarks/start.py`."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from predict import ROOT, database

PORT, STARTS = 9401, 7


def start(environment: dict[str, str]) -> tuple[float, float]:
    """Start a server and stop it; return the seconds until it was ready, and its resident MiB."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "app", "serve", "--port", str(PORT)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **environment}, stdout=quiet, stderr=quiet)
    try:
        while time.perf_counter() < began + 60:
            with suppress(URLError, OSError):
                urlopen(f"http://127.0.0.1:{PORT}/health/ready", timeout=2).close()
                break
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        resident = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
        assert resident is not None
        return seconds, int(resident[1]) / 1024
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    """Start a server several times on a running database; report the first start, which migrates, separately."""
    with database() as url, tempfile.TemporaryDirectory() as directory:
        starts = [start({"DATABASE_URL": url, "DATA_DIR": directory}) for _ in range(STARTS + 1)]
    seconds, memory = zip(*starts[1:], strict=True)
    print(f"first start, with migration: {starts[0][0]:.2f} s")
    print(
        f"later: {statistics.median(seconds):.2f} s (median of {STARTS}), {statistics.median(memory):.0f} MiB resident"
    )


if __name__ == "__main__":
    main()
