"""The service, PostgreSQL, Prometheus and Alertmanager together: panels show data, a bad model and an outage page."""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import pytest_asyncio

from tests.conftest import execute, make_open_directory, with_database
from tests.support.dashboards import PanelQuery, list_queries
from tests.support.processes import ROOT, Server, wait_until
from tests.support.rules import ALERTS, SEED_QUERIES
from tests.system.monitoring import Monitoring, Receiver, run_monitoring, run_receiver

# The first test waits until an alert has fired.
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

OBJECTIVE = 0.85

GOOD_ROWS, BAD_ROWS = 400, 1600


@dataclass(frozen=True, slots=True)
class Stack:
    """Everything that runs, since when, and what fired while the model was good."""

    server: Server
    monitoring: Monitoring
    receiver: Receiver
    started: float
    fired_early: list[dict[str, Any]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(postgres: str) -> AsyncIterator[Stack]:
    """The stack after a replay with true labels and one with wrong labels, which has reached the receiver."""
    await execute(postgres, "CREATE DATABASE monitoring TEMPLATE template")
    started = time.monotonic()
    with make_open_directory() as directory, run_receiver() as receiver:
        settings = {"F1_INTERVAL_SECONDS": "0.5", "QUALITY_WINDOWS": "1h,24h", "F1_OBJECTIVE": str(OBJECTIVE)}
        database = {"DATABASE_URL": with_database(postgres, "monitoring"), "DATA_DIR": str(directory / "data")}
        server = Server(database | settings)
        await server.start()
        try:
            async with run_monitoring(directory, f"127.0.0.1:{server.port}", receiver) as monitoring:
                await replay(server, 0, GOOD_ROWS)
                await wait_until(lambda: has_labels(monitoring, GOOD_ROWS))
                fired_early = await monitoring.ask_now('ALERTS{alertstate="firing", area="quality"}')
                await replay(server, GOOD_ROWS, BAD_ROWS, *make_wrong_labels(directory))
                await wait_until(lambda: receiver.heard("/pages", "ModelF1UnderObjective"))
                await wait_until(lambda: has_labels(monitoring, GOOD_ROWS + BAD_ROWS))  # the page comes before the last
                yield Stack(server, monitoring, receiver, started, fired_early)
        finally:
            await server.kill()
    await execute(postgres, "DROP DATABASE monitoring WITH (FORCE)")


async def replay(server: Server, start: int, rows: int, *options: str) -> None:
    """Send recorded rows and their labels."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "replay", "--url", server.url, "--start", str(start), "--rows", str(rows)),
        *("--rate", "400", "--label-delay", "0.2", *options),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()


def make_wrong_labels(directory: Path) -> tuple[str, str]:
    """Write labels that call every row of the bad replay negative."""
    path = directory / "labels.csv"
    first = 50_000 + GOOD_ROWS
    path.write_text("id,repaid\n" + "".join(f"{row},0\n" for row in range(first, first + BAD_ROWS)))
    return "--labels", str(path)


async def has_labels(monitoring: Monitoring, rows: int) -> bool:
    """Tell whether Prometheus knows that so many predictions are labelled."""
    found = await monitoring.ask_now(f'model_labelled_predictions{{window="1h"}} >= {rows}')
    return bool(found)


def is_number(value: str) -> bool:
    return not math.isnan(float(value))


@pytest.mark.parametrize("query", list_queries("prometheus"), ids=lambda query: query.name)
async def test_panel_shows_data(stack: Stack, query: PanelQuery) -> None:
    seconds = time.monotonic() - stack.started

    series = await stack.monitoring.ask(query.text, seconds)

    assert any(is_number(value) for one in series for _, value in one["values"])


@pytest.mark.parametrize("query", SEED_QUERIES)
async def test_query_of_the_seed_returns_data(stack: Stack, query: str) -> None:
    assert await stack.monitoring.ask_now(query)


@pytest.mark.parametrize(("label", "value"), [("model", "car-loan"), ("model_version", "1"), ("window", "1h")])
async def test_variable_has_the_values_of_what_is_served(stack: Stack, label: str, value: str) -> None:
    assert value in await stack.monitoring.list_values(label, 'model_quality_state{model="car-loan"}')


async def test_every_rule_is_evaluated_without_an_error(stack: Stack) -> None:
    async def are_evaluated() -> bool:
        return all(rule["health"] != "unknown" for rule in await stack.monitoring.list_rules())

    await wait_until(are_evaluated)
    rules = await stack.monitoring.list_rules()

    assert {rule["name"] for rule in rules} >= {rule["alert"] for rule in ALERTS}
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


async def test_every_target_is_up(stack: Stack) -> None:
    up = {one["metric"]["job"]: one["value"][1] for one in await stack.monitoring.ask_now("up")}

    assert up == {"scorekeeper": "1", "prometheus": "1", "alertmanager": "1"}


async def test_prometheus_and_quality_agree_on_f1(stack: Stack) -> None:
    async with httpx2.AsyncClient(base_url=stack.server.url) as client:
        results = (await client.get("/quality")).json()["results"]

    shown = await stack.monitoring.ask_now("model_f1_score")
    f1 = {one["metric"]["window"]: float(one["value"][1]) for one in shown}
    assert f1 == {result["window"]: pytest.approx(result["f1"], abs=1e-12) for result in results}


async def test_good_model_does_not_alert(stack: Stack) -> None:
    assert stack.fired_early == []


async def test_bad_model_pages_with_what_to_do(stack: Stack) -> None:
    notice = await stack.receiver.heard("/pages", "ModelF1UnderObjective")

    assert notice is not None
    (alert, *_) = notice.alerts
    window = alert["labels"]["window"]
    assert alert["labels"]["severity"] == "page"
    assert alert["labels"]["model"] == "car-loan"
    assert not {"runbook_base", "dashboard_base"} & alert["labels"].keys()
    runbook, _, section = alert["annotations"]["runbook_url"].partition("#")
    async with httpx2.AsyncClient() as client:
        page = await client.get(runbook)
    assert runbook.startswith(stack.server.url)
    assert f'<h3 id="{section}">ModelF1UnderObjective</h3>' in page.text
    dashboard = urlsplit(alert["annotations"]["dashboard_url"])
    assert (dashboard.netloc, dashboard.path) == ("grafana.example", "/d/ml-predictions")
    assert parse_qs(dashboard.query) == {"var-model": ["car-loan"], "var-version": ["1"], "var-window": [window]}


async def test_page_holds_back_the_ticket_about_the_same(stack: Stack) -> None:
    async def find_ticket() -> list[dict[str, Any]]:
        answer = await stack.monitoring.alertmanager.get("/api/v2/alerts")
        return [alert for alert in answer.json() if alert["labels"]["alertname"] == "ModelF1MayBeUnderObjective"]

    tickets = await wait_until(find_ticket)

    assert {ticket["status"]["state"] for ticket in tickets} == {"suppressed"}


async def test_outage_pages(stack: Stack) -> None:
    await stack.server.kill()

    notice = await wait_until(lambda: stack.receiver.heard("/pages", "ServiceDown"))

    assert notice.names("firing") == {"ServiceDown"}
