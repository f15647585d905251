"""The documentation's links lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.support.pages import PAGES, list_anchors
from tests.support.processes import ROOT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())

    broken = [link for link in links if "://" not in link and not leads_somewhere(page, link)]

    assert broken == []


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not heading or heading in list_anchors(target))


def test_index_names_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text()

    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in index} == set()


def test_tree_of_the_architecture_is_the_real_one() -> None:
    named = list_tree((ROOT / "docs/architecture.md").read_text())
    paths = [path.relative_to(ROOT) for path in (ROOT / "app").rglob("*.*") if "__pycache__" not in path.parts]

    files = {f"{path.parent}/" for path in paths}
    files |= {str(path) for path in paths if path.name != "__init__.py" or path.parent.name == "app"}
    missing, gone = sorted(files - named.keys()), sorted(named.keys() - files)
    assert not missing, f"not in the tree of docs/architecture.md: {', '.join(missing)}"
    assert not gone, f"in the tree of docs/architecture.md, but not there: {', '.join(gone)}"
    assert [name for name, phrase in named.items() if not phrase] == ["app/"], "a line says nothing of its file"


def test_functions_that_the_architecture_names_are_where_it_says() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    references = re.findall(r"`([\w/]+\.py): (\w+)`", text)

    assert len(references) > 20
    wrong = [f"{file}: {name}" for file, name in references if not defines(ROOT / "app" / file, name)]
    assert not wrong, f"not defined there: {', '.join(wrong)}"


def test_files_that_the_architecture_names_exist() -> None:
    prose = re.sub(r"```.*?```", "", (ROOT / "docs/architecture.md").read_text(), flags=re.DOTALL)
    named = re.findall(r"`([\w/]+\.\w+)[`:]", prose)

    gone = [name for name in named if not ((ROOT / name).exists() or (ROOT / "app" / name).exists())]
    assert not gone, f"not there: {', '.join(gone)}"


def list_tree(text: str) -> dict[str, str]:
    """Return path and phrase of each line of the tree, folders with a slash at the end."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in text.partition("```\n")[2].partition("```")[0].splitlines():
        name, _, phrase = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name]
        found["".join(folders)] = phrase.strip()
    return found


def defines(file: Path, name: str) -> bool:
    """Return whether a module defines a function, a method or a class of this name."""
    pattern = rf"^\s*(?:async def|def|class) {name}\b"
    return file.exists() and re.search(pattern, file.read_text(), re.MULTILINE) is not None
