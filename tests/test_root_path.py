"""Behind a proxy that takes a prefix away: every path works, and says where it is."""

import httpx2
import pytest

from tests.support.processes import Server

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
