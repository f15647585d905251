"""The quality job: its numbers against scikit-learn on the exported rows, one replica at a time, its failures."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import numpy as np
import pytest
from prometheus_client import REGISTRY
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.metrics import f1_score
from sklearn.tree import DecisionTreeClassifier

from app import metrics
from app.database.pool import open_pool
from app.jobs import attempt
from app.quality.queries import read_check
from app.quality.refresh import QualitySettings, refresh_results
from app.settings import F1Average
from app.state import Scoreboard
from tests.conftest import OpenClient
from tests.support.exposition import read_samples
from tests.support.jobs import WINDOWS, open_jobs
from tests.support.processes import find_free_port, wait_until
from tests.support.records import count_rows, fetch_known, make_record, register_demo, store

EXPORT_ROWS = """
SELECT p.predicted_class, l.label FROM prediction_log p JOIN prediction_label l USING (prediction_id)
WHERE l.label IS NOT NULL
"""

HOLD_JOB_LOCK = "SELECT pg_advisory_lock(hashtext('scorekeeper quality job'))"
FREE_JOB_LOCK = "SELECT pg_advisory_unlock(hashtext('scorekeeper quality job'))"


@pytest.fixture
async def stored_row(connection: asyncpg.Connection) -> None:
    """One prediction of a known version."""
    await register_demo(connection)
    await store(connection, make_record())


def read_gauges() -> dict[tuple[str, ...], float]:
    """The exported samples of coverage and state, whatever their labels."""
    gauges = (*metrics.MODEL_MEASURES.values(), metrics.MODEL_QUALITY_STATE)
    samples = [sample for gauge in gauges for family in gauge.collect() for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def count_failures() -> float:
    return REGISTRY.get_sample_value("model_quality_failures_total") or 0.0


@pytest.fixture(scope="session")
def flower_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with a mediocre classifier of three classes named by strings."""
    data = load_iris()
    features, names = data.data.astype(np.float32), data.target_names.astype(str)[data.target]
    classifier = DecisionTreeClassifier(max_depth=2, random_state=0).fit(features[:, :2], names)
    model = to_onnx(classifier, features[:1, :2], options={"zipmap": False}, target_opset={"": 16, "ai.onnx.ml": 1})
    file = tmp_path_factory.mktemp("models") / "flowers" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(model.SerializeToString())
    return file.parents[2]


async def predict_and_label(
    client: httpx2.AsyncClient, instances: Sequence[Sequence[float]], labels: Sequence[object]
) -> None:
    """Predict rows and label all but the first ten."""
    answer = await client.post("/predict", json={"instances": instances})
    ids = [prediction["prediction_id"] for prediction in answer.json()["predictions"]]
    pairs = list(zip(ids, labels, strict=True))[10:]
    await client.post("/labels", json={"labels": [{"prediction_id": key, "label": label} for key, label in pairs]})


async def wait_for_results(client: httpx2.AsyncClient, labelled: int) -> list[dict[str, Any]]:
    """Return the results of /quality once every window counts this many labels."""

    async def are_counted() -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = (await client.get("/quality")).json()["results"]
        metrics = (await client.get("/metrics")).text  # exported a moment after the results are stored
        exported = [line for line in metrics.splitlines() if line.startswith("model_labelled_predictions{")]
        counted = [result["labelled"] for result in results] + [float(line.split()[-1]) for line in exported]
        return results if exported and set(counted) == {labelled} else []

    return await wait_until(are_counted)


async def score_rows(connection: asyncpg.Connection, average: F1Average) -> float:
    """scikit-learn's F1 on the rows as the database has them."""
    rows = await connection.fetch(EXPORT_ROWS)
    predicted, labels = [row["predicted_class"] for row in rows], [row["label"] for row in rows]
    return float(f1_score(labels, predicted, average=average, pos_label="1" if average == "binary" else 1))


@pytest.mark.parametrize(("asked", "average"), [("", "binary"), ("macro", "macro"), ("micro", "micro")])
async def test_f1_of_two_classes_equals_scikit_learn(
    open_client: OpenClient, connection: asyncpg.Connection, asked: str, average: F1Average
) -> None:
    chance = np.random.default_rng(0)
    instances = chance.uniform((1e4, 0.1, 1, 1, 0), (1e5, 5, 80, 100, 80), (200, 5)).tolist()
    async with open_client(F1_INTERVAL_SECONDS="0.1", F1_AVERAGE=asked) as client:
        await predict_and_label(client, instances, chance.integers(0, 2, 200).tolist())

        results = await wait_for_results(client, 190)

        samples = await read_samples(client)
    expected = await score_rows(connection, average)
    assert 0.1 < expected < 0.9
    assert [(result["window"], result["average"]) for result in results] == [
        (window, average) for window in ("1h", "24h", "7d")
    ]
    for result in results:
        exported = samples.get("model_f1_score", model="car-loan", model_version="1", window=result["window"])
        assert [result["f1"], exported] == pytest.approx([expected, expected], abs=1e-12)


@pytest.mark.parametrize(
    ("asked", "average"), [("", "macro"), ("binary", "macro"), ("micro", "micro"), ("weighted", "weighted")]
)
async def test_f1_of_several_classes_equals_scikit_learn(
    open_client: OpenClient,
    connection: asyncpg.Connection,
    flower_model_dir: Path,
    asked: str,
    average: F1Average,
) -> None:
    data = load_iris()
    names = data.target_names.astype(str)[data.target].tolist()
    async with open_client(
        F1_INTERVAL_SECONDS="0.1", F1_AVERAGE=asked, MODEL_DIR=str(flower_model_dir), QUALITY_WINDOWS="30m"
    ) as client:
        await predict_and_label(client, data.data[:, :2].tolist(), names)

        [result] = await wait_for_results(client, 140)

        samples = await read_samples(client)
    exported = samples.get("model_f1_score", model="flowers", model_version="1", window="30m")
    expected = await score_rows(connection, average)
    assert 0.1 < expected < 0.95
    assert [result["f1"], exported] == pytest.approx([expected, expected], abs=1e-12)
    assert result["average"] == average
    assert result["coverage"] == 140 / 150


@pytest.mark.usefixtures("stored_row")
async def test_job_does_nothing_while_another_replica_computes(
    database_url: str, connection: asyncpg.Connection
) -> None:
    failures = count_failures()
    async with open_jobs(database_url) as jobs:
        await connection.execute(HOLD_JOB_LOCK)

        await jobs.refresh_quality()

        assert await count_rows(connection, "quality_result") == 0
        assert count_failures() == failures


@pytest.mark.usefixtures("stored_row")
async def test_job_computes_when_the_other_replica_is_done(database_url: str, connection: asyncpg.Connection) -> None:
    async with open_jobs(database_url) as jobs:
        await connection.execute(HOLD_JOB_LOCK)
        await jobs.refresh_quality()
        await connection.execute(FREE_JOB_LOCK)

        await jobs.refresh_quality()

    assert await count_rows(connection, "quality_result") == len(WINDOWS)


@pytest.mark.usefixtures("stored_row")
async def test_second_replica_exports_what_the_first_has_computed(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_jobs(database_url, 3600) as first, open_jobs(database_url, 3600) as second:
        await first.refresh_quality()
        exported = read_gauges()
        await store(connection, make_record())
        for gauge in (*metrics.MODEL_MEASURES.values(), metrics.MODEL_QUALITY_STATE):
            gauge.clear()

        await second.refresh_quality()

    assert read_gauges() == exported
    assert exported["model_quality_state", "car-loan", "1", "1h", "no_labels"] == 1


@pytest.mark.usefixtures("stored_row")
async def test_only_one_of_many_replicas_computes_when_all_begin_at_once(
    database_url: str, connection: asyncpg.Connection
) -> None:
    failures = count_failures()
    await connection.execute("CREATE TABLE computed (at timestamptz)")
    await connection.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$"
        "BEGIN INSERT INTO computed VALUES (new.computed_at); RETURN new; END $$"
    )
    await connection.execute("CREATE TRIGGER note BEFORE INSERT ON quality_result FOR EACH ROW EXECUTE FUNCTION note()")
    async with open_jobs(database_url, 3600) as first, open_jobs(database_url, 3600) as second:
        await asyncio.gather(*(jobs.refresh_quality() for jobs in (first, second) for _ in range(4)))

    assert count_failures() == failures
    assert await count_rows(connection, "computed") == len(WINDOWS)


@pytest.mark.usefixtures("stored_row")
async def test_job_counts_its_failure_and_exports_when_it_succeeds_again(
    database_url: str, connection: asyncpg.Connection
) -> None:
    before = count_failures()
    async with open_jobs(database_url) as jobs:
        await connection.execute("ALTER TABLE model_version RENAME TO away")
        await jobs.refresh_quality()
        failed = count_failures() - before
        await connection.execute("ALTER TABLE away RENAME TO model_version")

        started = datetime.now(UTC).timestamp() - 0.001
        await jobs.refresh_quality()

    assert (failed, count_failures() - before) == (1, 1)
    assert read_gauges()["model_quality_state", "car-loan", "1", "1h", "no_labels"] == 1
    assert (REGISTRY.get_sample_value("model_quality_last_success_timestamp_seconds") or 0) >= started


@pytest.mark.usefixtures("stored_row")
async def test_job_computes_when_the_clock_of_the_database_was_set_back(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_jobs(database_url, 15) as jobs:
        await jobs.refresh_quality()
        await connection.execute("UPDATE quality_result SET computed_at = now() + interval '1 hour'")

        await jobs.refresh_quality()

    latest = await connection.fetchval("SELECT max(computed_at) FROM quality_result")
    assert latest <= datetime.now(UTC) + timedelta(seconds=1)


@pytest.mark.usefixtures("stored_row")
async def test_last_results_stay_as_stale_while_the_database_is_away(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_jobs(database_url) as jobs:
        await jobs.refresh_quality()
        before = read_gauges()
        jobs._scoreboard.stale_after = timedelta(0)
        await connection.execute("ALTER TABLE quality_result RENAME TO away")

        await jobs.refresh_quality()

    after = read_gauges()
    assert before["model_quality_state", "car-loan", "1", "1h", "no_labels"] == 1
    assert after["model_quality_state", "car-loan", "1", "1h", "stale"] == 1
    assert after["model_quality_state", "car-loan", "1", "1h", "no_labels"] == 0
    assert after["model_label_coverage_ratio", "car-loan", "1", "1h"] == 0


@pytest.mark.usefixtures("stored_row")
async def test_results_of_versions_and_windows_that_are_gone_are_removed(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_jobs(database_url) as jobs:
        await jobs.refresh_quality()
        await connection.execute("UPDATE quality_result SET window_name = 'old' WHERE window_name = '1h'")
        await connection.execute("TRUNCATE prediction_log, quality_bucket")

        await jobs.refresh_quality()

    assert read_gauges() == {}


@pytest.mark.usefixtures("stored_row")
async def test_history_older_than_a_day_is_thinned_to_one_an_hour(
    database_url: str, connection: asyncpg.Connection
) -> None:
    async with open_jobs(database_url) as jobs:
        await jobs.refresh_quality()
        await connection.execute(
            "INSERT INTO quality_history SELECT date_bin('1 hour', now(), 'epoch') - age * interval '10 minutes', "
            "model_name, model_version, role, window_name, since, until, state, predictions, labelled "
            "FROM quality_history, generate_series(1, 6 * 24 * 3) AS ages (age) WHERE window_name = '1h'"
        )
        await connection.execute(
            "INSERT INTO quality_history SELECT minute - interval '401 days', model_name, model_version, role, "
            "window_name, since, until, state, predictions, labelled FROM quality_history"
        )

        await jobs.refresh_quality()

    rows = await connection.fetch(
        "SELECT minute FROM quality_history WHERE window_name = '1h' AND minute < now() - interval '25 hours'"
    )
    assert len(rows) in (47, 48)
    assert {row["minute"].minute for row in rows} == {50}


@pytest.mark.usefixtures("stored_row")
@pytest.mark.parametrize("wrong_by", [0, 3])
async def test_job_says_by_how_many_rows_the_ledger_is_wrong(
    database_url: str, connection: asyncpg.Connection, wrong_by: int
) -> None:
    await store(connection, *(make_record(datetime.now(UTC) - timedelta(minutes=1)) for _ in range(5)))
    await connection.execute("UPDATE quality_delta SET rows = rows + $1 WHERE rows = 5", wrong_by)
    async with open_jobs(database_url) as jobs:
        await jobs.refresh_quality()

    assert REGISTRY.get_sample_value("model_quality_ledger_mismatch_rows") == wrong_by


async def test_bug_in_a_job_is_counted_and_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    before = count_failures()

    async def divide() -> None:
        raise ZeroDivisionError

    error = await attempt("a job failed", divide, metrics.QUALITY_FAILURES)

    assert isinstance(error, ZeroDivisionError)
    assert count_failures() == before + 1
    [record] = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "a job failed")
    assert record.exc_info is not None


async def test_outage_is_one_failure_with_a_line_for_each_part(caplog: pytest.LogCaptureFixture) -> None:
    before = count_failures()

    async with open_jobs(f"postgresql://user:secret@127.0.0.1:{find_free_port()}/mlops") as jobs:
        await jobs.refresh_quality()

    assert count_failures() == before + 1
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)] * 2
    assert all("ConnectionRefusedError" in message and "secret" not in message for message in caplog.messages)


QUALITY = QualitySettings(WINDOWS, average=None, min_labels=50, objective=None)


@pytest.mark.usefixtures("stored_row")
async def test_check_that_takes_too_long_is_no_failure_and_is_not_repeated_at_once(
    database_url: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_pool(database_url, 2) as pool:
        known = await fetch_known(connection)

        async def refresh(check_seconds: float) -> bool:
            return await refresh_results(pool, QUALITY, known, set(), timedelta(0), check_seconds)

        async with connection.transaction():
            await connection.execute("LOCK TABLE prediction_log IN ACCESS EXCLUSIVE MODE")
            refreshed = [await refresh(0.2), await refresh(0)]
        _, unknown = await read_check(connection)
        await connection.execute("UPDATE quality_check SET minute = minute - interval '31 minutes'")
        await refresh(60)
        _, mismatch_rows = await read_check(connection)

    assert refreshed == [True, True]
    assert (unknown, mismatch_rows) == (None, 0)
    assert len([message for message in caplog.messages if "the check of the ledger took longer" in message]) == 1
    assert await count_rows(connection, "quality_result") == len(WINDOWS)


@pytest.mark.usefixtures("stored_row")
async def test_health_says_that_no_replica_computes_the_numbers(
    open_client: OpenClient, connection: asyncpg.Connection
) -> None:
    """Another replica holds the job's lock and does not end: this one's job does not fail."""
    async with open_client(F1_INTERVAL_SECONDS="0.2") as client:

        async def read_codes() -> list[str]:
            return [reason["code"] for reason in (await client.get("/health")).json()["reasons"]]

        async def has_results() -> bool:
            return bool((await client.get("/quality")).json()["results"])

        await wait_until(has_results)
        await connection.execute(HOLD_JOB_LOCK)
        await connection.execute("UPDATE quality_result SET computed_at = now() - interval '2 minutes'")

        await wait_until(read_codes)
        codes = await read_codes()
        await connection.execute(FREE_JOB_LOCK)

        async def is_well() -> bool:
            return not await read_codes()

        await wait_until(is_well)

    assert codes == ["quality_stale"]


async def test_hanging_job_is_trouble_when_no_results_were_ever_read() -> None:
    scoreboard = Scoreboard(timedelta(0))

    trouble = scoreboard.find_trouble()

    assert trouble is not None
    assert trouble.code == "quality_stale"
