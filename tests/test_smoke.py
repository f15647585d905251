import httpx2


async def test_predict_seed_example(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/predict", json={"features": [1.5, 2.3, 3.1, 4.2, 5.0]})

    assert answer.status_code == 200
