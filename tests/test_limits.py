"""A test that hangs fails by itself, whatever it hangs in, and the tests after it are run."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.processes import ROOT, WAIT_SECONDS

HANGING = """
import asyncio, threading, time
import pytest

async def test_waits_for_what_never_comes():
    await asyncio.Event().wait()

async def test_looks_again_and_again():
    while True:
        await asyncio.sleep(0)

async def test_waits_for_a_task():
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())

def test_waits_for_a_lock():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()

@pytest.fixture
def slow():
    time.sleep(3600)

def test_waits_for_its_fixture(slow):
    pass

@pytest.fixture
def stuck():
    yield
    time.sleep(3600)

def test_fails_and_its_fixture_does_not_end(stuck):
    assert False

@pytest.mark.timeout(60)
def test_takes_longer_by_its_marker():
    time.sleep(2)

def test_is_run_after_them():
    pass
"""

CONFTEST = """
from tests.support import limits
from tests.support.limits import *

limits.REPEAT_SECONDS = 3
"""

OPTIONS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_test_that_hangs_fails_and_the_others_are_run(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(HANGING)
    options = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), "-p", "no:cacheprovider")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-o", "timeout=1", *workers, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )

    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.findall(r"^(?:FAILED|ERROR) test_hanging\.py::(\w+)", done.stdout, re.MULTILINE)
    assert sorted(set(failed)) == [
        "test_fails_and_its_fixture_does_not_end",
        "test_looks_again_and_again",
        "test_waits_for_a_lock",
        "test_waits_for_a_task",
        "test_waits_for_its_fixture",
        "test_waits_for_what_never_comes",
    ]
    assert "2 passed" in done.stdout


def test_a_wait_ends_before_the_limit_of_its_test() -> None:
    assert OPTIONS["timeout"] >= 2 * WAIT_SECONDS


def test_the_last_resort_comes_after_every_limit() -> None:
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]

    limits = [float(found) for text in texts for found in re.findall(r"mark\.timeout\((\d+)\)", text)]

    assert max(*limits, OPTIONS["timeout"]) < OPTIONS["faulthandler_timeout"]
    assert OPTIONS["faulthandler_exit_on_timeout"]
