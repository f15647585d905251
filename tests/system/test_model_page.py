"""/ in a browser: the model on one screen, with the server's own numbers, live, in light and dark, for everybody."""

import json
import random
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx2
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from app.quality.labels import take_labels
from tests.support.onnx_models import build_echo, write_model
from tests.support.processes import ROOT, WAIT_SECONDS, Server, wait_until
from tests.support.records import make_label, make_record, store
from tests.system.browser import Visit, open_browser

OBJECTIVE = 0.9

SECONDS = 1000 * WAIT_SECONDS
"""Milliseconds that the page may take to show what it polls for every 5 s."""

WORSE = f"Worse than the objective of {OBJECTIVE:.3f}, and not by chance."

EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture
async def visit() -> AsyncIterator[Visit]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture
def live(server: Server) -> Server:
    """A server with an objective whose numbers are new every 0.2 s."""
    server.environment["F1_OBJECTIVE"] = str(OBJECTIVE)
    return server


async def fill(connection: asyncpg.Connection, rows: int = 600, right: float = 0.97) -> None:
    """Store predictions of the last half hour, most of them labelled, that share of them rightly."""
    rng = random.Random(1)
    now = datetime.now(UTC)
    records, labels = [], []
    for number in range(rows):
        predicted = rng.choice("01")
        score = rng.betavariate(8, 2) if predicted == "1" else rng.betavariate(2, 8)
        record = make_record(now - timedelta(minutes=30 * number / rows), predicted=predicted, score=score)
        records.append(record)
        label = predicted if rng.random() < right else "10"[int(predicted)]
        if rng.random() < 0.8:
            labels.append(make_label(record.prediction_id, label, now))
    await store(connection, *records)
    await take_labels(connection, labels)


async def fetch_result(server: Server, **measures: object) -> dict[str, Any]:
    """Return the result of the last hour once it has these measures and labels, which are committed after the rows."""

    async def is_computed() -> dict[str, Any] | None:
        async with httpx2.AsyncClient(base_url=server.url) as client:
            for result in (await client.get("/quality")).json()["results"]:
                if result["window"] == "1h" and result["labelled"] and measures.items() <= result.items():
                    found: dict[str, Any] = result
                    return found
        return None

    return await wait_until(is_computed)


async def read_list(page: Page, id: str) -> dict[str, str]:  # noqa: A002  # the page's own word
    names = await page.locator(f"#{id} dt").all_text_contents()
    values = await page.locator(f"#{id} dd").all_text_contents()
    return dict(zip(names, values, strict=True))


async def read_chart(page: Page, id: str) -> dict[str, list[Any]]:  # noqa: A002
    """Return the values of each of a chart's series, as they are drawn."""
    script = (
        "id => Object.fromEntries(Chart.getChart(id).data.datasets.map(s => [s.label, s.data.map(d => d?.y ?? d)]))"
    )
    series: dict[str, list[Any]] = await page.evaluate(script, id)
    return series


async def test_page_shows_the_servers_numbers_and_asks_nobody_else(
    live: Server, visit: Visit, connection: asyncpg.Connection
) -> None:
    await live.start()
    await fill(connection)
    result = await fetch_result(live, predictions=600)
    page = visit.page

    await page.goto(live.url)

    await expect(page.locator("#f1")).to_have_text(f"{result['f1']:.3f}", timeout=SECONDS)
    await expect(page.locator("#bounds")).to_contain_text(f"{result['f1_lower']:.3f} and {result['f1_upper']:.3f}")
    await expect(page.locator("#state")).to_have_text("objective met")
    await expect(page.locator("#verdict")).to_have_text(f"The objective of {OBJECTIVE:.3f} is met, and not by chance.")
    await expect(page.locator("#server")).to_have_text("Server ok")
    numbers = await read_list(page, "numbers")
    assert numbers["Predictions"] == "600"
    assert numbers["Labelled (coverage)"] == f"{result['labelled']} ({100 * result['coverage']:.1f} %)"
    assert numbers["AUC"] == f"{result['auc']:.3f}"
    assert (await read_list(page, "log"))["Dead"] == "0"
    await expect(page.locator("#classes-table tbody tr")).to_have_count(2)
    history = await read_chart(page, "history")
    assert (history["F1"][-1], history["bounds (95 %)"][-1]) == (result["f1"], result["f1_lower"])
    assert history["objective"] == [OBJECTIVE, OBJECTIVE]
    scores = await read_chart(page, "scores")
    hits = sum(result["confusion"][name][name] for name in "01")
    assert {name: sum(map(int, bars)) for name, bars in scores.items()} == {
        "correct": hits,
        "wrong": result["labelled"] - hits,
        "not labelled": 600 - result["labelled"],
    }
    rate = await read_chart(page, "rate")
    full = list(zip(*rate.values(), strict=True))[-10:-1]
    assert [sum(map(float, classes)) for classes in full] == pytest.approx([20] * 9, abs=1)
    await visit.take_picture("light")
    await page.emulate_media(color_scheme="dark")
    await visit.take_picture("dark")
    assert {urlsplit(url).netloc for url in visit.urls if not url.startswith("data:")} == {urlsplit(live.url).netloc}
    assert visit.complaints == []


async def test_page_follows_what_happens(live: Server, visit: Visit, connection: asyncpg.Connection) -> None:
    await live.start()
    page = visit.page
    await page.goto(live.url)
    await expect(page.locator("#state")).to_have_text("no predictions", timeout=SECONDS)
    await expect(page.locator("#f1")).to_have_text("\N{EN DASH}")
    await visit.take_picture("empty")

    await fill(connection, right=0.8)
    await expect(page.locator("#verdict")).to_have_text(WORSE, timeout=SECONDS)
    result = await fetch_result(live, predictions=600)

    await expect(page.locator("#f1")).to_have_text(f"{result['f1']:.3f}", timeout=SECONDS)
    await expect(page.locator("#state")).to_have_text("objective missed")
    await expect(page.locator("#state")).to_have_class(re.compile("bad"))
    assert visit.complaints == []


async def test_page_says_so_when_the_server_is_gone_and_when_it_is_degraded(
    live: Server, visit: Visit, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "demo" / "models", tmp_path / "models")
    live.environment["MODEL_DIR"] = str(tmp_path / "models")
    await live.start()
    page = visit.page
    await page.goto(live.url)
    await expect(page.locator("#state")).to_have_text("no predictions", timeout=SECONDS)

    await live.kill()
    await expect(page.get_by_role("alert")).to_contain_text("The server does not answer", timeout=SECONDS)
    await expect(page.get_by_role("alert")).to_contain_text("the page shows its state at")
    await expect(page.locator("#server")).to_have_text("Server unknown")
    await expect(page.locator("#state")).to_have_text("unknown")
    await visit.take_picture("gone")
    write_model(tmp_path / "models", b"no model", "car-loan", "2")
    await live.start()

    await expect(page.get_by_role("alert")).to_be_hidden(timeout=SECONDS)
    await expect(page.locator("#server")).to_have_text("Server degraded", timeout=SECONDS)
    await expect(page.locator("#reasons")).to_contain_text("car-loan version 2")
    await visit.take_picture("degraded")


async def test_choices_are_kept_in_the_address_and_texts_of_a_model_are_only_texts(
    live: Server, visit: Visit, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        write_model(tmp_path / "models", build_echo(3, classes=json.dumps([EVIL, "b", "c"])), "evil", version)
    write_model(tmp_path / "models", build_echo(), "other")
    live.environment |= {"MODEL_DIR": str(tmp_path / "models"), "DEFAULT_MODEL": "other"}
    await live.start()
    async with httpx2.AsyncClient(base_url=live.url) as client:
        body = {"features": [0.8, 0.1, 0.1], "model": "evil", "version": "1"}
        assert (await client.post("/predict", json=body)).status_code == 200
    page = visit.page
    await page.goto(live.url)
    await expect(page.locator("#model")).to_have_value("other", timeout=SECONDS)

    await page.locator("#model").select_option("evil")
    await expect(page.locator("#version option")).to_have_text(["2 (default)", "1", "2"], timeout=SECONDS)
    await page.locator("#version").select_option("1")
    await page.locator("#window").select_option("24h")
    await expect(page.locator("#summary-title")).to_have_text("F1 of evil version 1, last 24h", timeout=SECONDS)
    await page.reload()

    await expect(page.locator("#summary-title")).to_have_text("F1 of evil version 1, last 24h", timeout=SECONDS)
    await expect(page.locator("#classes-table tbody th")).to_have_text([EVIL, "b", "c"], timeout=SECONDS)
    await expect(page.locator("#classes-table tbody tr").first.locator("td").first).to_have_text("1", timeout=SECONDS)
    await expect(page.locator("main img")).to_have_count(0)
    assert visit.complaints == []


async def test_another_versions_numbers_are_not_shown_for_those_that_are_not_there(
    live: Server, visit: Visit, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        write_model(tmp_path / "models", build_echo(2), "car-loan", version)
    live.environment["MODEL_DIR"] = str(tmp_path / "models")
    await live.start()
    page = visit.page
    await page.goto(f"{live.url}/?version=1")
    await expect(page.locator("#summary-title")).to_contain_text("version 1", timeout=SECONDS)

    async with httpx2.AsyncClient(base_url=live.url) as client:
        assert (await client.post("/models/car-loan/unload", json={"version": "1"})).status_code == 200

    await expect(page.locator("#summary-title")).to_have_text("F1", timeout=SECONDS)
    await expect(page.locator("#version option")).to_have_text(["2 (default)", "1", "2"])
    await expect(page.locator("#version")).to_have_value("1")
    await expect(page.locator("#numbers dt")).to_have_count(0)
    await expect(page.locator("canvas").first).to_be_hidden()


async def test_charts_of_another_window_are_not_shown_when_the_database_does_not_answer(
    live: Server, visit: Visit, connection: asyncpg.Connection
) -> None:
    await live.start()
    await fill(connection)
    await fetch_result(live, predictions=600)
    page = visit.page
    await page.goto(live.url)
    await expect(page.locator("#classes-table tbody tr")).to_have_count(2, timeout=SECONDS)

    await connection.execute("ALTER TABLE quality_bucket RENAME TO away")
    await page.locator("#window").select_option("24h")

    await expect(page.get_by_role("alert")).to_contain_text("quality/counts is answered 503", timeout=SECONDS)
    await expect(page.locator("#summary-title")).to_contain_text("last 24h")
    await expect(page.locator("canvas").first).to_be_hidden()

    await connection.execute("ALTER TABLE away RENAME TO quality_bucket")
    await expect(page.locator("canvas").first).to_be_visible(timeout=SECONDS)
    await expect(page.get_by_role("alert")).to_be_hidden()


HISTORY = """
INSERT INTO quality_history (minute, model_name, model_version, role, window_name, since, until, state, predictions,
    labelled, f1)
SELECT at, 'car-loan', '1', 'live', '24h', at - interval '1 day', at, 'ok', 100, 50, 0.5
FROM generate_series($1::timestamptz - interval '20 hours', $1::timestamptz - interval '10 minutes', '10 minutes') at
WHERE at NOT BETWEEN $1::timestamptz - interval '10 hours' AND $1::timestamptz - interval '8 hours'
"""


async def test_line_of_f1_is_broken_only_where_the_job_did_not_run(
    live: Server, visit: Visit, connection: asyncpg.Connection
) -> None:
    await live.start()
    await fill(connection)
    await fetch_result(live, predictions=600)
    await connection.execute(HISTORY, datetime.now(UTC).replace(second=0, microsecond=0))
    page = visit.page

    await page.goto(f"{live.url}/?window=24h")
    await expect(page.locator("#history")).to_have_attribute("aria-label", re.compile("past results"), timeout=SECONDS)

    line = (await read_chart(page, "history"))["F1"]
    breaks = [at for at, value in enumerate(line) if isinstance(value, dict)]
    assert len(breaks) == 1
    assert line[: breaks[0]] == [0.5] * 60
    await visit.take_picture("gap")


async def test_every_class_is_counted_once_whatever_its_name(
    live: Server, visit: Visit, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    classes = ["all", "others", "constructor", "x" * 200, *"abcde", "__proto__"]
    write_model(tmp_path / "models", build_echo(10, classes=json.dumps(classes)), "names")
    live.environment["MODEL_DIR"] = str(tmp_path / "models")
    await live.start()
    at = datetime.now(UTC) - timedelta(minutes=20)
    records = [make_record(at, model="names", predicted=name) for name in (*classes, *classes, *classes[:3])]
    await store(connection, *records)
    await take_labels(connection, [make_label(records[2].prediction_id, "constructor", at)])
    await fetch_result(live, predictions=23, labelled=1)
    page = visit.page

    await page.goto(f"{live.url}/?window=24h")
    table = page.locator("#classes-table tbody tr")
    await expect(table).to_have_count(10, timeout=SECONDS)

    rate = await read_chart(page, "rate")
    assert {name: round(10 * sum(map(float, rows))) for name, rows in rate.items()} == {
        **dict.fromkeys(classes[:3], 3),
        **dict.fromkeys(["x" * 23 + "…", *"abc"], 2),
        "all others": 6,
    }
    assert await table.nth(2).locator("th, td").all_text_contents() == ["constructor", "3", "1", *["1.000"] * 3]
    assert (await table.last.locator("th, td").all_text_contents())[:2] == ["__proto__", "2"]
    await visit.take_picture("names")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
async def test_page_fits_and_breaks_no_rule_of_accessibility(
    live: Server, visit: Visit, connection: asyncpg.Connection, width: int, scheme: Any
) -> None:
    await live.start()
    await fill(connection)
    await fetch_result(live, predictions=600)
    page = visit.page
    await page.set_viewport_size({"width": width, "height": 800})
    await page.emulate_media(color_scheme=scheme)
    await page.goto(live.url)
    await expect(page.locator("#classes-table tbody tr")).to_have_count(2, timeout=SECONDS)

    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    if width > 1000:
        assert await page.evaluate("document.documentElement.scrollHeight") <= 800
    for summary in await page.locator("summary").all():
        await summary.press("Enter")
    await visit.take_picture(f"tables-{width}-{scheme}")
    found = (await Axe().run(page)).response

    assert [(broken["id"], [node["html"] for node in broken["nodes"]]) for broken in found["violations"]] == []
    assert len(found["passes"]) > 10


OK = {"state": "ok", "f1": 0.445, "f1_lower": 0.391, "f1_upper": 0.501, "baseline_f1": 0.466, "objective": None}


VERDICTS: list[tuple[dict[str, Any], str, str, str]] = [
    ({}, "near the baseline", "warn", "chance may explain"),
    ({"f1_upper": 0.465}, "poor", "bad", "not by chance"),
    ({"objective": 0.6}, "objective missed", "bad", "not by chance"),
    ({"objective": 0.45}, "near the baseline", "warn", "chance may explain"),
    ({"objective": 0.3}, "near the baseline", "warn", "chance may explain"),
    ({"baseline_f1": 0.2}, "ok", "", "No objective"),
    ({"baseline_f1": 0.2, "objective": 0.3}, "objective met", "good", "is met"),
    ({"baseline_f1": 0.2, "objective": 0.45}, "near the objective", "warn", "chance may explain"),
    ({"state": "too_few_labels", "f1_upper": 0.1}, "too few labels", "warn", "Trust the bounds"),
]
"""What is changed of OK; the badge, its colour, and words of the verdict."""


async def test_verdict_is_red_only_when_chance_does_not_explain_it(live: Server, visit: Visit) -> None:
    await live.start()
    await visit.page.goto(live.url)

    for changes, badge, colour, words in VERDICTS:
        judged = await judge(visit.page, **changes)

        assert (judged[0], judged[2]) == (badge, colour), changes
        assert words in judged[1], changes
        assert "threshold" not in judged[1], changes


async def test_a_better_threshold_is_offered_where_it_is_certain(live: Server, visit: Visit) -> None:
    await live.start()
    await visit.page.goto(live.url)
    better = {"best_threshold": 0.38, "best_threshold_f1": 0.512, "regret_is_certain": True}

    _, certain, _ = await judge(visit.page, **better)
    _, uncertain, _ = await judge(visit.page, **better | {"regret_is_certain": False})

    assert "With a threshold of 0.38 F1 would be 0.512, and not by chance." in certain
    assert "threshold" not in uncertain


async def judge(page: Page, **changes: object) -> list[str]:
    """Ask the page's own script for its verdict."""
    script = "async (result) => (await import('./page/text.js')).judge(result)"
    judged: list[str] = await page.evaluate(script, {**OK, **changes})
    return judged


async def test_versions_are_sorted_as_numbers_and_the_pinned_one_is_marked(
    live: Server, visit: Visit, tmp_path: Path
) -> None:
    for version in ("10", "9", "8"):
        write_model(tmp_path / "models", build_echo(2), "car-loan", version)
    live.environment["MODEL_DIR"] = str(tmp_path / "models")
    await live.start()
    page = visit.page
    await page.goto(live.url)
    await expect(page.locator("#version option")).to_have_text(["10 (default)", "8", "9", "10"], timeout=SECONDS)

    async with httpx2.AsyncClient(base_url=live.url) as client:
        assert (await client.post("/models/car-loan/pin", json={"version": "9"})).status_code == 200

    pinned = ["9 (default, pinned)", "8", "9 (pinned)", "10"]
    await expect(page.locator("#version option")).to_have_text(pinned, timeout=SECONDS)


async def test_runbook_is_readable_for_everybody(live: Server, visit: Visit) -> None:
    await live.start()

    await visit.page.goto(f"{live.url}/runbook/alerts.md#modelf1underobjective")

    await expect(visit.page.locator("#modelf1underobjective")).to_be_in_viewport()
    assert (await Axe().run(visit.page)).response["violations"] == []
    assert visit.complaints == []
    await visit.take_picture("runbook")
