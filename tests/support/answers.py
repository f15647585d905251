"""What tests of the HTTP surface send, and how they read what comes back."""

from typing import Any

import asyncpg
import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.support.records import count_rows

NAMES = ("car_value", "debt_to_income_ratio", "loan_length", "driver_tenure", "size_of_downpayment")
"""The demo model's features, in its order."""

FEATURES = (1.5, 2.3, 3.1, 4.2, 5.0)
"""The row of the README's example."""

BY_NAME = dict(zip(NAMES, FEATURES, strict=True))

JSON_HEADERS = {"content-type": "application/json"}
NDJSON_HEADERS = {"content-type": "application/x-ndjson"}

WRITTEN_TABLES = ("prediction_log", "prediction_label", "prediction_label_history", "pending_label", "key_label")

SECRETS = ("postgresql://", "postgres@", "SELECT ", "INSERT ", "Traceback", 'File "')
"""What would betray SQL, a DSN or a stack trace."""

PROBLEM_MEMBERS = {"type", "title", "status", "detail", "instance"}


def read_problem(answer: httpx2.Response) -> list[tuple[str, str]]:
    """Check that an answer is a well-formed problem that betrays nothing; return (pointer, code) of its errors."""
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(problem) - {"errors"} == PROBLEM_MEMBERS
    assert problem["status"] == answer.status_code
    assert problem["instance"] == answer.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert not [secret for secret in SECRETS if secret in answer.text]
    for error in problem.get("errors", []):
        assert set(error) == {"pointer", "code", "detail"}
    return [(error["pointer"], error["code"]) for error in problem.get("errors", [])]


async def count_written(connection: asyncpg.Connection) -> int:
    """Count the rows of every table that a request can write to."""
    return sum([await count_rows(connection, table) for table in WRITTEN_TABLES])


async def predict(client: httpx2.AsyncClient, **body: object) -> Any:
    """Send a valid body, by default the example's row, and return the answer's JSON."""
    if "instances" not in body:
        body = {"features": FEATURES, **body}
    answer = await client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def label(client: httpx2.AsyncClient, **body: object) -> Any:
    """Send a valid label and return the counts."""
    answer = await client.post("/labels", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def list_ids(client: httpx2.AsyncClient, **parameters: str | int) -> list[str]:
    """Return the ids of one page of predictions."""
    answer = await client.get("/predictions", params=parameters)
    assert answer.status_code == 200, answer.text
    return [row["prediction_id"] for row in answer.json()["predictions"]]


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: httpx2.AsyncClient) -> Samples:
    """Return every sample of /metrics by name and labels."""
    answer = await client.get("/metrics")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def pick(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample's value; one that is not there yet counts as 0."""
    return samples.get((name, frozenset(labels.items())), 0.0)
