"""GET /health, /health/live, /health/ready, /metrics: for probes, load balancers and Prometheus."""

import msgspec
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from app.errors import Reason
from app.serving.repository import ModelRepository
from app.state import State, get_state

MAX_DETAILS = 5
"""Versions named by one reason; GET /models names all."""


async def health(request: Request) -> Response:
    """Answer 200 with what is wrong, if anything; ready tells a load balancer, this tells a person."""
    state = get_state(request.scope)
    reasons = find_refusals(state) + find_troubles(state)
    unique = list({reason.code: reason for reason in reasons}.values())
    return _json({"status": "degraded" if unique else "ok", "reasons": unique}, 200)


async def live(request: Request) -> Response:  # noqa: ARG001  # a process that answers is alive, whatever it asks
    """Answer 200 as long as the event loop turns."""
    return _json({"live": True}, 200)


async def ready(request: Request) -> Response:
    """Answer 200 while /predict can keep its promise, else 503."""
    reasons = find_refusals(get_state(request.scope))
    return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


async def expose_metrics(request: Request) -> Response:
    """Answer in the Prometheus text format, or OpenMetrics if the client accepts it."""
    get_state(request.scope).log.export()
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"Content-Type": content_type})


def find_refusals(state: State) -> list[Reason]:
    """List why /predict cannot keep its promise now."""
    reasons = []
    if state.lifecycle.stopping is not None:
        reasons.append(state.lifecycle.stopping)
    if state.lifecycle.database_trouble is not None and state.durability == "database":
        reasons.append(state.lifecycle.database_trouble)
    if refusal := state.log.find_refusal():
        reasons.append(refusal)
    return reasons


def find_troubles(state: State) -> list[Reason]:
    """List what is wrong although /predict can keep its promise."""
    reasons = []
    if state.lifecycle.database_trouble is not None:
        reasons.append(state.lifecycle.database_trouble)
    if trouble := state.log.find_trouble():
        reasons.append(trouble)
    if state.reloader.trouble is not None:
        reasons.append(state.reloader.trouble)
    return reasons + find_model_troubles(state.repository)


def find_model_troubles(repository: ModelRepository) -> list[Reason]:
    """List what is wrong with versions in MODEL_DIR, one reason for all versions with the same fault."""
    found: dict[str, list[Reason]] = {}
    for record in repository.records():
        if record.trouble is not None:
            name, version = record.printable
            detail = f"{name} version {version}: {record.trouble.detail}"
            found.setdefault(record.trouble.code, []).append(msgspec.structs.replace(record.trouble, detail=detail))
    return [
        Reason(code=code, detail=sum_up([one.detail for one in troubles]), since=min(one.since for one in troubles))
        for code, troubles in found.items()
    ]


def sum_up(details: list[str]) -> str:
    """Join the first few of many details."""
    more = f" (and {len(details) - MAX_DETAILS} more)" if len(details) > MAX_DETAILS else ""
    return "; ".join(details[:MAX_DETAILS]) + more


def _json(answer: object, status: int) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(answer), status, headers, media_type="application/json")
