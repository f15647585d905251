"""schemathesis reads /openapi.json and finds nothing in which the server does otherwise."""

import asyncio
import os
import sys
from pathlib import Path

import httpx2
import pytest

from tests.support.answers import predict
from tests.support.processes import ROOT, Server
from tests.support.several_models import ROW, write_several

pytestmark = pytest.mark.timeout(600)  # thousands of requests

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)
"""Not positive_data_acceptance: no schema says that external_ids are as many as instances, or since before until."""

CONFIG = Path(__file__).parent / "schemathesis.toml"

EXAMPLES = os.environ.get("TEST_EXAMPLES", "50")
"""Requests per operation and phase, at most."""

CHANGING = "/(load|unload|pin)$"
"""Operations that change which versions are served, and so the document: by themselves, on a server of their own."""

ALWAYS_REFUSED = "unsupported"
"""The tag of operations that are answered 501 whatever is sent, which counts as a server error there."""


@pytest.mark.parametrize("chosen", ["--exclude-path-regex", "--include-path-regex"])
async def test_schemathesis_finds_nothing(server: Server, tmp_path: Path, chosen: str) -> None:
    server.environment |= write_several(tmp_path)
    await server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        await predict(client, features=ROW)  # so that there is a row to answer

    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(CONFIG)),
        *("run", f"{server.url}/openapi.json", chosen, CHANGING, "--exclude-tag", ALWAYS_REFUSED),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--max-examples", EXAMPLES, "--seed", "1", "--continue-on-failure", "--no-color", "--warnings", "off"),
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.system.ndjson", "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()

    assert process.returncode == 0, output.decode()
    assert "No issues found" in output.decode()
    assert b"failed" not in server.log
