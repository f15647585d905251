"""What the stack must do, step by step."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import httpx2

from tests.compose.stack import CONFIGURATION, Stack, run
from tests.support.load import Answers, find_lost, load
from tests.support.processes import wait_until

Step = Callable[[Stack], Awaitable[str | None]]

CLIENTS = 4

UNDER_LOAD_SECONDS = 2.0
"""How long clients send before and after each fault, so that there is something to lose."""


async def build_image(stack: Stack) -> str:
    """The image is built,"""
    stack.compose("build", "app")
    image = CONFIGURATION["services"]["app"]["image"]
    megabytes = int(run("docker", "image", "inspect", "--format", "{{.Size}}", image)) / 1e6
    layers = run("docker", "history", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", image)
    ours = sum(int(line.split()[0]) for line in layers.splitlines() if "COPY" in line or "useradd" in line) / 1e6
    return f"{megabytes:.0f} MB, {ours:.0f} MB of it over its base"


async def start_everything(stack: Stack) -> None:
    """Everything starts and is healthy, the schema at head."""
    stack.compose("up", "--detach", "--no-build", *stack.services)
    for service in stack.services:
        await wait_healthy(stack, service)
    assert "(head)" in stack.execute("app", "alembic", "current")


async def check_hardening(stack: Stack) -> None:
    """The server's user can do little, and nothing writes outside the volumes."""
    assert stack.execute("app", "id", "-u") == "10001"
    status = stack.execute("app", "cat", "/proc/1/status").splitlines()
    assert {line.split()[1] for line in status if line.startswith("Cap")} == {"0" * 16}
    assert "NoNewPrivs:\t1" in status
    assert "Read-only file system" in stack.execute("app", "touch", "/venv/file", check=False)
    for service in stack.services:
        found = stack.inspect(service)["HostConfig"]
        assert found["ReadonlyRootfs"], service
        assert found["CapDrop"] == ["ALL"], service
        ports = [binding["HostIp"] for bindings in found["PortBindings"].values() for binding in bindings or []]
        assert set(ports) <= {"127.0.0.1"}, service


async def predict_and_label(stack: Stack) -> str:
    """Predictions and labels reach PostgreSQL:"""
    async with httpx2.AsyncClient(base_url=stack.url("app"), timeout=30) as client:
        ids = []
        for number in range(20):
            answer = await client.post("/predict", json={"features": [1.5 + number, 2.3, 3.1, 4.2, 5.0]})
            ids.append(answer.raise_for_status().json()["prediction_id"])
        labels = [{"prediction_id": prediction_id, "label": 1} for prediction_id in ids]
        counts = (await client.post("/labels", json={"labels": labels})).raise_for_status().json()
    assert counts["received"] == 20, counts
    assert counts["rejected"] == 0, counts
    found = await wait_until(lambda: count_labelled(stack, ids), what=lambda: "20 labelled rows")
    return f"{found} rows"


async def count_labelled(stack: Stack, ids: list[str]) -> int | None:
    """Count these rows when all of them are stored with their label."""
    connection = await asyncpg.connect(stack.database_url)
    try:
        found: int = await connection.fetchval(
            "SELECT count(*) FROM prediction_log JOIN prediction_label USING (prediction_id)"
            " WHERE prediction_id = ANY ($1::uuid[]) AND label = '1'",
            [UUID(key) for key in ids],
        )
    finally:
        await connection.close()
    return found if found == len(ids) else None


async def see_metrics(stack: Stack) -> str:
    """Prometheus sees the server, its predictions and the model's F1 of the demo's rows:"""
    async with httpx2.AsyncClient(base_url=stack.url("prometheus"), timeout=10) as client:
        for query in ('up{instance="app:8000"} == 1', 'up{instance="alertmanager:9093"} == 1', "predictions_total > 0"):
            await wait_series(client, query)
        f1 = await wait_series(client, 'model_f1_score{window="5m"} > 0.5')
        rules = (await client.get("/api/v1/rules")).json()["data"]["groups"]
        managers = (await client.get("/api/v1/alertmanagers")).json()["data"]["activeAlertmanagers"]
    assert rules, "no rules are loaded"
    assert managers, "no Alertmanager is known"
    return f"F1 {float(f1[0]['value'][1]):.3f}, {sum(len(group['rules']) for group in rules)} rules"


async def wait_series(client: httpx2.AsyncClient, query: str) -> list[dict[str, tuple[float, str]]]:
    """Return the series of an instant query, once there are any."""

    async def ask() -> list[dict[str, tuple[float, str]]]:
        await asyncio.sleep(0.5)
        response = await client.get("/api/v1/query", params={"query": query})
        series: list[dict[str, tuple[float, str]]] = response.raise_for_status().json()["data"]["result"]
        return series

    return await wait_until(ask, seconds=90, what=lambda: query)


async def kill_server(stack: Stack) -> str:
    """SIGKILL of the server loses no row:"""

    async def kill() -> None:
        run("docker", "kill", "--signal=KILL", stack.container("app"))
        stack.compose("start", "app")

    return await lose_nothing(stack, kill)


async def kill_database(stack: Stack) -> str:
    """SIGKILL of PostgreSQL loses no row:"""

    async def kill() -> None:
        run("docker", "kill", "--signal=KILL", stack.container("db"))
        await asyncio.sleep(UNDER_LOAD_SECONDS)
        stack.compose("start", "db")

    return await lose_nothing(stack, kill)


async def restart_database(stack: Stack) -> str:
    """A restart of PostgreSQL loses no row:"""

    async def restart() -> None:
        await asyncio.to_thread(stack.compose, "restart", "db")

    return await lose_nothing(stack, restart)


async def lose_nothing(stack: Stack, fault: Callable[[], Awaitable[None]]) -> str:
    """Send predictions while `fault` happens; then every one that was answered 200 is in the table."""
    async with load(stack.url("app"), clients=CLIENTS) as answers:
        await asyncio.sleep(UNDER_LOAD_SECONDS)
        await fault()
        for service in ("app", "db"):
            await wait_healthy(stack, service)
        before = len(answers.promised)
        await wait_until(lambda: has_grown(answers, before), what=lambda: "predictions are answered again")
        await asyncio.sleep(UNDER_LOAD_SECONDS)
    await wait_until(lambda: has_all(stack, answers), what=lambda: "every answered row is stored")
    return f"{len(answers.promised)} answered and stored"


async def has_grown(answers: Answers, before: int) -> bool:
    """Tell whether rows have been answered since there were `before`."""
    return len(answers.promised) > before


async def has_all(stack: Stack, answers: Answers) -> bool:
    """Tell whether every answered row is stored as it was answered."""
    return await find_lost(stack.database_url, answers) == []


async def wait_healthy(stack: Stack, service: str) -> None:
    """Wait until the engine says that a service is healthy, off the loop: clients go on meanwhile."""

    async def ask() -> bool:
        await asyncio.sleep(0.5)
        return await asyncio.to_thread(stack.is_healthy, service)

    await wait_until(ask, seconds=120, what=lambda: f"{service} is healthy")


async def stop_and_start(stack: Stack) -> str:
    """The server stops by itself within its grace period, and starts again:"""
    stopping = time.monotonic()
    stack.compose("stop", "app")
    stopped = time.monotonic()
    assert stack.inspect("app")["State"]["ExitCode"] == 0
    stack.compose("start", "app")
    starting = time.monotonic()
    async with httpx2.AsyncClient(base_url=stack.url("app"), timeout=5) as client:
        await wait_until(lambda: is_ready(client), what=lambda: "the server is ready")
    return f"{stopped - stopping:.1f} s to stop, {time.monotonic() - starting:.1f} s from the start to ready"


async def is_ready(client: httpx2.AsyncClient) -> bool:
    """Tell whether the server says that it is ready."""
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx2.TransportError:
        return False


STEPS: tuple[Step, ...] = (
    build_image,
    start_everything,
    check_hardening,
    predict_and_label,
    kill_server,
    kill_database,
    restart_database,
    see_metrics,
    stop_and_start,
)
