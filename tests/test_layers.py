"""The contracts of import-linter: that they hold is `make check`'s business, that they would fail is tested here."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, WAIT_SECONDS


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("app/replay/rows.py", "import onnxruntime", "onnxruntime is imported by app.serving.model only"),
        ("app/server/direct.py", "from onnxruntime import InferenceSession", "onnxruntime is imported by"),
        ("app/exchange/parquet.py", "import onnxruntime", "onnxruntime is imported by"),
        ("app/serving/batching.py", "import onnxruntime", "onnxruntime is imported by"),
        ("app/measures/f1.py", "import asyncio", "pure"),
        ("app/spool/segment.py", "import asyncpg", "pure"),
        ("app/quality/labels.py", "from app.serving import repository", "imports point down"),
        ("app/web/body.py", "from app.api import predict", "imports point down"),
        ("app/spool/reader.py", "from app.database import pool", "imports point down"),
        ("app/another.py", "", "imports point down"),
    ],
)
def test_an_import_that_is_forbidden_breaks_a_contract(tmp_path: Path, module: str, line: str, contract: str) -> None:
    shutil.copytree(ROOT / "app", tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__", "page"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / module
    path.write_text(f"{path.read_text() if path.exists() else ''}\n{line}\n")

    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )

    assert done.returncode == 1, done.stdout + done.stderr
    broken = [entry for entry in done.stdout.splitlines() if " BROKEN" in entry]
    assert len(broken) == 1, done.stdout
    assert contract in broken[0]


def test_tests_import_no_tests() -> None:
    """What two of them need stands in tests/support, where it is looked for."""
    importing = re.compile(
        r"^(?:from|import) tests\.(?:\w+\.)?test_|^from tests(?:\.\w+)? import .*\btest_", re.MULTILINE
    )

    assert [path.name for path in (ROOT / "tests").rglob("*.py") if importing.search(path.read_text())] == []
