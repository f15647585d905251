"""Series exist at 0 before anything is counted: `increase` does not see the value that a series is born with."""

from typing import get_args

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from app import metrics
from app.prediction_log.failures import FailureKind
from app.quality.labels import Outcome
from tests.support.exposition import read_samples
from tests.support.processes import Server

BEFORE_A_ROUTE = {"408", "414", "431"}
"""Answered by the connection, before the route is known: counted for the route `unmatched`."""


@pytest.fixture(scope="module")
def odd_metrics() -> tuple[metrics.QuickCounter, metrics.BatchHistogram]:
    """Two metrics whose labels need escapes, which GET /metrics of other tests does not show."""
    counter = metrics.QuickCounter("odd_events", "Odd events", ["name", "kind"])
    histogram = metrics.BatchHistogram("odd_seconds", "Odd seconds", ["name"], edges=[0.5, 1, 2500])
    del metrics.QUICK_METRICS[-2:]
    for name in ODD_NAMES:
        counter.add((name, "a"), 3)
        counter.add((name, "b"), 0)
        histogram.observe((name,), [0.5, 0.75, 1e7])
    return counter, histogram


ODD_NAMES = ("plain", 'quo"te', "back\\slash", "line\nfeed", "snow\N{SNOWMAN}")


def list_expected(kind: type[Counter] | type[Histogram]) -> CollectorRegistry:
    """The same metrics and values by prometheus_client."""
    registry = CollectorRegistry()
    if kind is Counter:
        counter = Counter("odd_events", "Odd events", ["name", "kind"], registry=registry)
        for name in ODD_NAMES:
            counter.labels(name, "a").inc(3)
            counter.labels(name, "b")
    else:
        histogram = Histogram("odd_seconds", "Odd seconds", ["name"], registry=registry, buckets=(0.5, 1, 2500))
        for name in ODD_NAMES:
            for value in (0.5, 0.75, 1e7):
                histogram.labels(name).observe(value)
    return registry


@pytest.mark.parametrize("kind", [Counter, Histogram])
def test_quick_metrics_are_written_as_prometheus_client_does(
    odd_metrics: tuple[metrics.QuickCounter, metrics.BatchHistogram], kind: type[Counter] | type[Histogram]
) -> None:
    metric = odd_metrics[kind is Histogram]
    plain = metric.render(is_openmetrics=False)
    openmetrics = metric.render(is_openmetrics=True) + "# EOF\n"

    families = list(list_expected(kind).collect())
    expected = {
        (sample.name, *sorted(sample.labels.items()), sample.value)
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    for parsed in (list(text_string_to_metric_families(plain)), list(parse_openmetrics(openmetrics))):  # type: ignore[no-untyped-call]  # prometheus-client types only the other one
        assert [(family.name, family.type, family.documentation) for family in parsed] == [
            (family.name, family.type, family.documentation) for family in families
        ]
        found = [
            (sample.name, *sorted(sample.labels.items()), sample.value)
            for family in parsed
            for sample in family.samples
        ]
        assert set(found) == expected
        assert len(found) == len(expected)
    expected_text = generate_openmetrics(list_expected(kind)).decode()  # type: ignore[no-untyped-call]  # as above
    assert all(line in expected_text for line in openmetrics.splitlines() if line.startswith("#"))


async def test_every_answer_that_the_document_names_is_counted_from_zero(server: Server) -> None:
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        samples = await read_samples(client)
        document = (await client.get("/openapi.json")).json()

    asked = {
        ("GET", "/health/ready")
    }  # by the fixture, until the server was ready; a route of the document without types
    answers = {
        (method.upper(), path.replace("{rest}", "{rest:path}"), status)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in {"get", "post", "put", "delete"}
        for status in operation["responses"].keys() - BEFORE_A_ROUTE
    }
    assert len(answers) > 200
    values = {
        answer: samples.get("http_requests_total", method=answer[0], route=answer[1], status=answer[2])
        for answer in answers
        if answer[:2] not in asked
    }
    assert {answer: value for answer, value in values.items() if value != 0} == {}
    for method, route in {answer[:2] for answer in answers} - asked:
        labels = {"method": method, "route": route}
        assert samples.get("http_request_duration_seconds_count", **labels) == 0, route
        assert samples.get("http_request_duration_seconds_bucket", **labels, le="0.1") == 0, route


async def test_failures_before_a_route_are_counted_from_zero(server: Server) -> None:
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        samples = await read_samples(client)

    for status in (400, 503, *BEFORE_A_ROUTE):
        labels = {"method": "OTHER", "route": "unmatched", "status": str(status)}
        assert samples.get("http_requests_total", **labels) == 0, status
    assert samples.get("http_requests_total", method="GET", route="unmatched", status="404") == 0
    assert samples.get("http_requests_total", method="POST", route="/predict", status="499") == 0


async def test_labels_classes_and_failures_are_counted_from_zero(server: Server) -> None:
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        samples = await read_samples(client)

    version = {"model": "car-loan", "model_version": "1"}
    assert [samples.get("predictions_total", **version, **{"class": name}) for name in ("0", "1")] == [0, 0]
    assert samples.get("prediction_score_distribution_count", **version) == 0
    assert samples.get("inference_seconds_count", **version) == 0
    assert [samples.get("model_labels_total", outcome=outcome) for outcome in get_args(Outcome)] == [0] * 7
    kinds = get_args(FailureKind)
    assert [samples.get("prediction_log_failures_total", kind=kind) for kind in kinds] == [0] * len(kinds)
    for outcome in ("success", "fail"):
        assert samples.get("open_inference_request_seconds_count", **version, outcome=outcome) == 0


async def test_every_counter_and_histogram_has_a_series_from_the_start(server: Server) -> None:
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        text = (await client.get("/metrics")).text

    counted = [one for one in text_string_to_metric_families(text) if one.type in {"counter", "histogram", "summary"}]
    assert len(counted) > 20
    assert [family.name for family in counted if not family.samples] == []
