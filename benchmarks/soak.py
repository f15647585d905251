"""Ten minutes at half the capacity, in which nothing may grow without limit: `python benchmarks/soak.py --rate 13000`.

Prints a line per minute. Shipped segments stay in the spool for five minutes, to be offered again after a failover: the
spool grows for that time and then stays as it is. Everything else is constant after the first minute. With --away,
PostgreSQL is unreachable: the spool grows until it is full, without using more memory, and then requests are refused.
"""

import argparse
import os
import re
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

from open_loop import run_paced
from predict import OTHER_CORE, ROOT, database, serve

PORT = 9301
NOBODY = "postgresql://user:password@127.0.0.1:1/mlops"


def sample(pid: int, spool: Path) -> str:
    """Return the cells of a line: memory, descriptors, segments, spool and pending rows."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
    assert resident is not None
    files = len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208
    segments = [path.stat().st_size for path in spool.glob("seg-*.log")]
    metrics = urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10).read().decode()
    pending = re.search(r"^prediction_log_pending_rows (\S+)$", metrics, re.MULTILINE)
    assert pending is not None
    cells = int(resident[1]) // 1024, files, len(segments), sum(segments) // 1024**2, int(float(pending[1]))
    return " | ".join(f"{cell:,}" for cell in cells)


def watch(pid: int, spool: Path, minutes: int) -> None:
    """Print a line per minute."""
    print("| minute | resident MiB | descriptors | segments | spool MiB | pending rows |\n|---|---|---|---|---|---|")
    for minute in range(minutes + 1):
        print(f"| {minute} | {sample(pid, spool)} |", flush=True)
        time.sleep(60 if minute < minutes else 0)


def main() -> None:
    """Send requests, watch the server, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=13000)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--away", action="store_true")
    options = parser.parse_args()
    with ExitStack() as stack:
        url = NOBODY if options.away else stack.enter_context(database())
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pid = stack.enter_context(serve("app:main", PORT, {"DATABASE_URL": url, "DATA_DIR": str(work)}, ROOT))
        watcher = threading.Thread(target=watch, args=(pid, work / "spool", options.minutes))
        watcher.start()
        paced = run_paced(PORT, options.rate, options.minutes * 60, work)
        watcher.join()
    print(f"{paced.answered:,} answered, {paced.answered / paced.seconds:,.0f}/s; refused or lost: {paced.errors}")
    print(f"p50 {paced.p50_ms:.2f} ms, p99 {paced.p99_ms:.2f} ms, p99.9 {paced.p999_ms:.2f} ms")


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(OTHER_CORE)})
    main()
