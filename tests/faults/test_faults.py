"""Every scenario of a normal run on real processes: `pytest tests/faults`, as root, with strace."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.postgres import Postgres
from tests.faults.scenario import Scenario, run_scenario
from tests.faults.scenarios import list_scenarios
from tests.faults.suite import open_postgres

pytestmark = pytest.mark.timeout(300)  # a fault lasts, then what was promised has a minute to be stored


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def faulty_postgres() -> AsyncIterator[Postgres]:
    """A PostgreSQL of these tests alone, which they may kill."""
    async with open_postgres() as postgres:
        yield postgres


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scenario", list_scenarios(), ids=str)
async def test_no_answered_row_is_lost(scenario: Scenario, faulty_postgres: Postgres, open_path: Path) -> None:
    verdict = await run_scenario(scenario, faulty_postgres, open_path)

    assert verdict.problems == ()
