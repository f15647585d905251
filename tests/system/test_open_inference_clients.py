"""The clients of the Open Inference Protocol, as they are published, against a running server."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import pytest

from tests.support.processes import ROOT, Server, wait_until
from tests.support.programs import run
from tests.support.records import count_rows

pytestmark = pytest.mark.timeout(1000)  # packages are installed

CLIENTS = ("tritonclient[http]==2.73.0", "kserve==0.21.0")
SCRIPT = ROOT / "tests" / "system" / "open_inference_clients.py"
ROWS = [[1.5, 2.3, 3.1, 4.2, 5.0], [60000.0, 0.2, 24.0, 12.5, 30.0]]


async def test_clients_are_answered_and_their_rows_are_stored(
    server: Server, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    # One test for both: their environment, which does not go together with ours, takes a minute to make.
    await asyncio.to_thread(run, sys.executable, "-m", "venv", "clients", cwd=tmp_path)
    await asyncio.to_thread(run, "clients/bin/pip", "install", "--quiet", *CLIENTS, cwd=tmp_path)
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        predicted = (await client.post("/predict", json={"instances": ROWS})).json()["predictions"]

    arguments = ("clients/bin/python", str(SCRIPT), f"127.0.0.1:{server.port}", json.dumps(ROWS))
    seen = json.loads(await asyncio.to_thread(run, *arguments, cwd=tmp_path))

    expected = {
        "label": [one["prediction"] for one in predicted],
        "probabilities": [list(one["probabilities"].values()) for one in predicted],
    }
    answers = [(client, name, answer) for client in seen for name, answer in seen[client]["answers"].items()]
    assert len(answers) == 11
    ids: list[str] = []
    for client_name, name, answer in answers:
        ids += answer.pop("ids")
        assert answer == expected, (client_name, name)
    check_clients(seen)
    assert len(set(ids)) == 2 * len(answers)
    stored = 2 * len(answers) + len(ROWS)

    async def are_stored() -> bool:
        return await count_rows(connection, "prediction_log") == stored

    await wait_until(are_stored)
    found = await connection.fetchval("SELECT count(*) FROM prediction_log WHERE prediction_id = ANY($1::uuid[])", ids)
    assert found == len(ids)


def check_clients(seen: dict[str, Any]) -> None:
    """Check what the clients make of everything beside inference."""
    ready = {"ready": True, "model ready": True}
    assert seen["tritonclient asyncio"]["checks"] == ready
    assert seen["kserve"]["checks"] == {**ready, "live": True, "other ready": False}
    assert seen["tritonclient"]["checks"] == {
        **ready,
        "live": True,
        "version ready": True,
        "other ready": False,
        "server": "scorekeeper",
        "metadata": "car-loan",
        "config": "car-loan",
        "index": ["READY"],
        "statistics": 1,
        "model statistics": 1,
        "load": None,
        "errors": ["404", "409", "501", "501", "501"],
    }
