"""The command line as a whole: its version, and that documents name commands that there are."""

import re
import tomllib
from pathlib import Path

import pytest

from app.commands.parser import parse_arguments
from app.database.embedded_home import place_outside
from tests.support.pages import PAGES
from tests.support.processes import ROOT, run_app


async def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert await run_app("--version") == (0, f"scorekeeper {project['version']}\n")


@pytest.mark.parametrize(
    "command",
    [
        ("export", "--since", "2026-01-01T00:00:00Z", "--output", "rows.csv"),
        ("quality", "check"),
        ("quality", "rebuild"),
    ],
    ids=" ".join,
)
async def test_command_about_a_database_makes_none(tmp_path: Path, command: tuple[str, ...]) -> None:
    environment = {"DATABASE_URL": "", "DATA_DIR": str(tmp_path / "nowhere")}

    status, said = await run_app(*command, environment=environment)

    assert status == 1
    assert said == (
        f"error: there is no database: DATABASE_URL is not set, and {tmp_path}/nowhere/postgresql has none; "
        "set DATABASE_URL, or DATA_DIR to the server's\n"
    )
    assert list(tmp_path.iterdir()) == []
    assert not place_outside(tmp_path / "nowhere" / "postgresql").exists()


def test_every_command_that_a_page_names_exists() -> None:
    named = {command for page in PAGES for command in list_commands(page)}

    assert {command for command in named if not is_known(command)} == set()
    assert {("serve",), ("spool", "drain"), ("quality", "rebuild"), ("labels", "import"), ("export",)} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_the_program_and_not_the_package(page: Path) -> None:
    """In a folder with an `app` of its own, `python -m app` does not find the installed one."""
    assert "python -m app" not in page.read_text()


def list_commands(page: Path) -> set[tuple[str, ...]]:
    """Return the commands, each with its action, that stand in code, such as `scorekeeper spool status|verify`."""
    found = re.findall(r"(?:^|`)scorekeeper ([a-z]+)(?: ([a-z|]+))?", page.read_text(), re.MULTILINE)
    return {(command, *([action] if action else [])) for command, actions in found for action in actions.split("|")}


def is_known(command: tuple[str, ...]) -> bool:
    """Return whether the command line knows it: an unknown command or action is wrong usage, status 2."""
    with pytest.raises(SystemExit) as ending:
        parse_arguments([*command, "--help"])
    return ending.value.code == 0
