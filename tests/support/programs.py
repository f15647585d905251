"""Programs that are run to their end, as a user runs them."""

import os
import subprocess
from pathlib import Path

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
