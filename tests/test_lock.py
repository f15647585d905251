"""The lock files fit pyproject.toml and each other; `make lock` makes them."""

import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYTHON = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYTHON["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
LOCKS = {"requirements.lock": "embedded", "requirements-test.lock": "test"}
"""Each lock file, and the extra that it holds beside the dependencies and what builds the package."""

every_lock = pytest.mark.parametrize("lock", LOCKS)


@every_lock
def test_lock_has_a_version_that_fits_for_everything_that_pyproject_asks_for(lock: str) -> None:
    locked = read_lock(lock)

    asked = [Requirement(line) for line in [*PROJECT["dependencies"], *PYTHON["dependency-groups"]["build"]]]
    asked += list_extra(LOCKS[lock])

    found = {str(entry): locked.get(canonicalize_name(entry.name)) for entry in asked}
    unfit = [str(entry) for entry in asked if not entry.specifier.contains(found[str(entry)] or "0")]
    assert [name for name, version in found.items() if version is None] == []
    assert unfit == []


@every_lock
def test_lock_has_hashes_for_every_entry_and_no_address(lock: str) -> None:
    text = (ROOT / lock).read_text()
    entries = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]

    assert [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}$", entry, re.MULTILINE)] == []
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted-host", text)


def test_tests_run_with_the_versions_that_are_released() -> None:
    released, tested = read_lock("requirements.lock"), read_lock("requirements-test.lock")

    assert {name: tested.get(name) for name in released} == released


@every_lock
def test_entry_names_the_extras_that_others_ask_for(lock: str) -> None:
    """pip up to 23.2 looks at the newest release for an extra that the lock leaves out, and refuses it: no hash."""
    names = read_lock(lock)
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)(\[[^]]+\])?==", (ROOT / lock).read_text(), re.MULTILINE))
    asked = [Requirement(line) for line in PROJECT["dependencies"]]
    for name in names:
        asked += [Requirement(line) for line in list_requirements(name)]

    wanted = {
        (canonicalize_name(entry.name), extra)
        for entry in asked
        if canonicalize_name(entry.name) in names and (entry.marker is None or entry.marker.evaluate({"extra": ""}))
        for extra in entry.extras
    }
    assert ("sqlalchemy", "asyncio") in wanted
    assert {(name, extra) for name, extra in wanted if extra not in locked[name].strip("[]").split(",")} == set()


def test_package_is_built_by_a_locked_version_in_the_range_of_its_build_system() -> None:
    [builder] = PYTHON["build-system"]["requires"]

    assert builder in PYTHON["dependency-groups"]["build"]


def read_lock(lock: str) -> dict[str, Version]:
    """Return each package's version; a package that is locked twice fails."""
    entries = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]+\])?==(\S+)", (ROOT / lock).read_text(), re.MULTILINE)
    assert len(dict(entries)) == len(entries), "a package is locked twice"
    return {canonicalize_name(name): Version(version) for name, version in entries}


def list_requirements(name: str) -> list[str]:
    """Return what an installed package asks for; nothing for a package that this platform does not have."""
    try:
        return distribution(name).requires or []
    except PackageNotFoundError:
        return []


def list_extra(extra: str) -> Iterator[Requirement]:
    """Yield the requirements of an extra, and those of the extras that it names."""
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for inner in requirement.extras:
                yield from list_extra(inner)
        else:
            yield requirement
