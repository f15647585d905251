"""Spoilt requests over the wire: no 500, nothing that hangs, no row that is missing or half-written."""

from pathlib import Path

import pytest

from tests.fuzzing.run import fuzz

pytestmark = pytest.mark.timeout(600)  # ten thousand requests

CASES = 10_000
"""`python -m tests.fuzzing` sends ten times as many."""


async def test_nothing_is_wrong_when_requests_are_spoilt(database_url: str, tmp_path: Path) -> None:
    findings = await fuzz(database_url, tmp_path, seed=1, first=0, count=CASES)

    assert findings.wrong == []
    assert min(findings.statuses[status] for status in (200, 400, 404, 408, 415, 422)) > 10
    assert len(findings.said) > 1_000
