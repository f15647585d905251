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
