"""Behind a proxy that publishes the server below a prefix: paths, errors and the document are those of the prefix."""

from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.support.answers import JSON_HEADERS, read_problem
from tests.support.open_inference import INFER, make_body, read_error
from tests.support.prefix import PREFIX, open_prefix_proxy, start_below_prefix
from tests.support.processes import Server


@pytest.fixture
async def published(server: Server) -> AsyncIterator[httpx2.AsyncClient]:
    """A client whose paths begin behind the prefix."""
    start_below_prefix(server)
    await server.start()
    async with open_prefix_proxy(server.port) as url, httpx2.AsyncClient(base_url=url) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/page/docs.js", "/models", "/quality", "/health", "/metrics", "/v2"]
)
async def test_path_is_answered_below_a_prefix(published: httpx2.AsyncClient, path: str) -> None:
    assert (await published.get(path)).status_code == 200


async def test_inference_and_labels_work_below_a_prefix(published: httpx2.AsyncClient) -> None:
    inferred = await published.post(INFER, json=make_body())
    labelled = await published.post("/labels", json={"external_id": "a", "label": 1}, headers=JSON_HEADERS)

    assert (inferred.status_code, labelled.status_code) == (200, 200)


ENTRANCES = pytest.mark.parametrize(
    "entrance", [("-m", "app", "serve"), ("-m", "uvicorn", "app:main")], ids=["serve", "uvicorn"]
)


@ENTRANCES
async def test_predictions_are_answered_behind_a_prefix(server: Server, entrance: tuple[str, ...]) -> None:
    server.command = (*entrance, "--port", str(server.port), "--root-path", "/ml")
    await server.start()

    async with httpx2.AsyncClient(base_url=server.url) as client:
        answers = [
            await client.post(target, json={"features": [1, 2, 3, 4, 5]}) for target in ("/predict", "/predict?a=1")
        ]
        wrong_method = await client.get("/predict")
        nowhere = await client.get("/v2/nowhere")
        metrics = (await client.get("/metrics")).text

    assert [answer.status_code for answer in answers] == [200, 200]
    assert wrong_method.status_code == 405
    assert (nowhere.status_code, list(nowhere.json())) == (404, ["error"])
    assert 'http_requests_total{method="POST",route="/predict",status="200"} 2.0' in metrics


async def test_errors_have_the_form_of_their_path_below_a_prefix(published: httpx2.AsyncClient) -> None:
    missing, unknown = await published.get("/v2/none"), await published.get("/v2/models/none")
    problem = await published.get("/predictions/none")

    assert (missing.status_code, unknown.status_code, problem.status_code) == (404, 404, 422)
    assert read_error(missing)
    assert read_error(unknown).startswith("no such model")
    assert read_problem(problem) == [("", "wrong_type")]


async def test_document_says_where_the_server_is(published: httpx2.AsyncClient, client: httpx2.AsyncClient) -> None:
    below, at_the_top = [(await one.get("/openapi.json")).json() for one in (published, client)]

    assert [one["url"] for one in below["servers"]] == [PREFIX]
    assert [one["url"] for one in at_the_top["servers"]] == ["/"]
    assert below["paths"] == at_the_top["paths"]
