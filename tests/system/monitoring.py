"""Prometheus and Alertmanager of Debian's packages on the repository's files, and somebody who hears their alerts."""

import asyncio
import json
import os
import re
import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2

from tests.support.processes import ROOT, WAIT_SECONDS, find_free_port, wait_until


@dataclass(frozen=True, slots=True)
class Notice:
    """What Alertmanager has sent: to which path, and which alerts."""

    path: str
    alerts: list[dict[str, Any]]

    def names(self, status: str) -> set[str]:
        """The names of its alerts of that status."""
        return {alert["labels"]["alertname"] for alert in self.alerts if alert["status"] == status}


@dataclass(slots=True)
class Receiver:
    """A webhook that keeps what it is sent."""

    port: int
    notices: list[Notice] = field(default_factory=list)

    async def heard(self, path: str, alert: str) -> Notice | None:
        """Return the first notice that this alert fires at that path."""
        found = (notice for notice in self.notices if notice.path == path and alert in notice.names("firing"))
        return next(found, None)


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    """Listen on a free port until exit."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            receiver.notices.append(Notice(self.path, body["alerts"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class calls it so
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Running Prometheus and Alertmanager."""

    prometheus: httpx2.AsyncClient
    alertmanager: httpx2.AsyncClient

    async def ask(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        """Return the series of an expression over the last `seconds`, as a panel shows them."""
        now = (await self._get("query", query="time()"))["result"][0]
        found = await self._get("query_range", query=expression, start=now - seconds, end=now, step=1)
        result: list[dict[str, Any]] = found["result"]
        return result

    async def ask_now(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now."""
        result: list[dict[str, Any]] = (await self._get("query", query=expression))["result"]
        return result

    async def list_rules(self) -> list[dict[str, Any]]:
        """Return every rule and how it does."""
        return [rule for group in (await self._get("rules"))["groups"] for rule in group["rules"]]

    async def list_values(self, label: str, selector: str) -> list[str]:
        """Return a label's values among some series, as a dashboard's variable does."""
        response = await self.prometheus.get(f"/api/v1/label/{label}/values", params={"match[]": selector})
        values: list[str] = response.raise_for_status().json()["data"]
        return values

    async def _get(self, what: str, **parameters: str | float) -> dict[str, Any]:
        response = await self.prometheus.get(f"/api/v1/{what}", params=parameters)
        assert response.status_code == 200, f"{parameters}: {response.text}"
        data: dict[str, Any] = response.json()["data"]
        return data


@asynccontextmanager
async def run_monitoring(directory: Path, app: str, receiver: Receiver) -> AsyncIterator[Monitoring]:
    """Run both on the repository's files with other addresses and shorter times, until exit; `app` is host:port."""
    prometheus, alertmanager = (f"127.0.0.1:{find_free_port()}" for _ in range(2))
    shutil.copytree(ROOT / "prometheus", directory / "prometheus")
    shutil.copy(ROOT / "prometheus.yml", directory)
    addresses = {"app:8000": app, "alertmanager:9093": alertmanager, "localhost:9090": prometheus}
    edit(directory / "prometheus.yml", addresses | {"_interval: 15s": "_interval: 1s"})
    links = {"RUNBOOK_URL": f"http://{app}/runbook", "DASHBOARD_URL": "http://grafana.example"}
    for rules in directory.glob("prometheus/*.rules.yml"):
        edit(rules, {f"for: {minutes}m": "for: 1s" for minutes in (2, 5, 30)})
    listener = {"localhost:5001": f"127.0.0.1:{receiver.port}", "group_wait: 10s": "group_wait: 0s"}
    edit(directory / "prometheus" / "alertmanager.yml", listener | {"group_interval: 5m": "group_interval: 1s"})
    commands = {
        alertmanager: (
            *("prometheus-alertmanager", f"--config.file={directory}/prometheus/alertmanager.yml"),
            *(f"--storage.path={directory}/alertmanager", f"--web.listen-address={alertmanager}"),
            "--cluster.listen-address=",
        ),
        prometheus: (
            *("prometheus", f"--config.file={directory}/prometheus.yml"),
            *(f"--storage.tsdb.path={directory}/tsdb", f"--web.listen-address={prometheus}"),
            "--enable-feature=expand-external-labels",
        ),
    }
    async with (
        run_process(alertmanager, commands[alertmanager], directory / "alertmanager.log") as of_alertmanager,
        run_process(prometheus, commands[prometheus], directory / "prometheus.log", links) as of_prometheus,
    ):
        yield Monitoring(of_prometheus, of_alertmanager)


def edit(path: Path, replacements: Mapping[str, str]) -> None:
    """Replace texts in a file, each of which must be there if the file is no rule file."""
    text = path.read_text()
    for old, new in replacements.items():
        assert old in text or path.name.endswith(".rules.yml"), f"{path} has no {old}"
        text = re.sub(re.escape(old) + r"\b", new, text)
    path.write_text(text)


@asynccontextmanager
async def run_process(
    address: str, command: tuple[str, ...], log: Path, environment: Mapping[str, str] | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a server until exit, and wait until it is ready."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, env=os.environ | (environment or {})
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=10) as client:
            await wait_until(lambda: is_ready(client), what=log.read_text)
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(WAIT_SECONDS):
            await process.wait()


async def is_ready(client: httpx2.AsyncClient) -> bool:
    """Tell whether the server says that it is ready."""
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx2.TransportError:
        return False
