"""GET /health, /health/live, /health/ready, /metrics: for probes, load balancers and Prometheus."""

import msgspec
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from app.state import State, get_state


async def health(request: Request) -> Response:
    """Answer 200 with what is wrong, if anything; ready tells a load balancer, this tells a person."""
    reasons = find_reasons(get_state(request.scope))
    return _json({"status": "degraded" if reasons else "ok", "reasons": reasons}, 200)


async def live(request: Request) -> Response:  # noqa: ARG001  # a process that answers is alive, whatever it asks
    """Answer 200 as long as the event loop turns."""
    return _json({"live": True}, 200)


async def ready(request: Request) -> Response:
    """Answer 200 while /predict can keep its promise, else 503."""
    reasons = find_reasons(get_state(request.scope))
    return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)


async def expose_metrics(request: Request) -> Response:
    """Answer in the Prometheus text format, or OpenMetrics if the client accepts it."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(REGISTRY), headers={"Content-Type": content_type})


def find_reasons(state: State) -> list[dict[str, str]]:
    """List why /predict cannot keep its promise now."""
    reasons = []
    if state.lifecycle.stopping:
        reasons.append({"code": "stopping", "detail": "the server is shutting down"})
    if state.lifecycle.schema == "behind":
        reasons.append({"code": "schema_behind", "detail": "the database schema is behind: run `alembic upgrade head`"})
    if state.shipper.failure is not None:
        reasons.append({"code": f"log_{state.shipper.failure.kind}", "detail": "PostgreSQL does not take predictions"})
    return reasons


def _json(answer: object, status: int) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(msgspec.json.encode(answer), status, headers, media_type="application/json")
