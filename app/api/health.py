"""GET /health, /health/live, /health/ready, /metrics: for probes, load balancers and Prometheus."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.errors import Reason
from app.quality.label_status_queries import LabelStatus
from app.serving.repository import ModelRepository
from app.state import State, get_state
from app.web.json import answer_json
from app.web.operation import Operation

MAX_DETAILS = 5
"""Versions that one reason names; GET /models names all."""

NO_STORE = {"Cache-Control": "no-store"}


class LabelHealth(msgspec.Struct):
    """Labels that were received and do not count, on all replicas."""

    pending: Annotated[int, Meta(description="Labels that wait for their prediction to be stored", examples=[3])]
    pending_since: Annotated[
        datetime | None, Meta(description="When the oldest of them was received", examples=["2026-01-01T00:00:00Z"])
    ]
    rejected: Annotated[
        int, Meta(description="Labels of the last 24 hours that no class of their model fits", examples=[2])
    ]
    rejected_at: Annotated[
        datetime | None, Meta(description="When the last of them was rejected", examples=["2026-01-01T00:00:00Z"])
    ]


class Health(msgspec.Struct):
    """How the server is."""

    status: Annotated[
        Literal["ok", "degraded"], Meta(description="`degraded` while there are reasons", examples=["degraded"])
    ]
    reasons: Annotated[list[Reason], Meta(description="What is wrong, each code once")]
    labels: Annotated[
        LabelHealth | UnsetType, Meta(description="Labels that do not count; absent if there are none")
    ] = UNSET


class Liveness(msgspec.Struct):
    """Whether the server lives."""

    live: Annotated[bool, Meta(description="Always true: a server that does not live does not answer", examples=[True])]


class Readiness(msgspec.Struct):
    """Whether `POST /predict` can keep its promise."""

    ready: Annotated[bool, Meta(description="Whether requests should be sent to this server now", examples=[False])]
    reasons: Annotated[list[Reason], Meta(description="Why not; empty when it is ready")]


@Operation(id="getHealth", tag="operations", summary="What is wrong, if anything", answers={200: [Health]})
async def get_health(request: Request) -> Response:
    """Answer 200 with everything that is wrong. This is for people; `/health/ready` is for load balancers."""
    state = get_state(request.scope)
    unique = list({reason.code: reason for reason in find_refusals(state) + _find_troubles(state)}.values())
    return answer_json(Health("degraded" if unique else "ok", unique, _count_labels(state)), headers=NO_STORE)


@Operation(id="isLive", tag="operations", summary="Whether the process lives", answers={200: [Liveness]})
async def get_liveness(request: Request) -> Response:  # noqa: ARG001  # a process that answers is alive
    """Answer 200 as long as the event loop runs, whatever else is wrong."""
    return answer_json(Liveness(live=True), headers=NO_STORE)


@Operation(
    id="isReady",
    tag="operations",
    summary="Whether /predict can keep its promise",
    answers={200: [Readiness], 503: [Readiness]},
)
async def get_readiness(request: Request) -> Response:
    """Answer 200 while `POST /predict` can keep its promise, else 503 with the reasons."""
    reasons = find_refusals(get_state(request.scope))
    return answer_json(Readiness(not reasons, reasons), 503 if reasons else 200, NO_STORE)


@Operation(
    id="getMetrics",
    tag="operations",
    summary="Metrics for Prometheus",
    answers={200: ["text/plain", "application/openmetrics-text"]},
)
async def expose_metrics(request: Request) -> Response:
    """Answer in the Prometheus text format, or in OpenMetrics if `Accept` asks for it."""
    state = get_state(request.scope)
    state.log.export()
    state.clock.export()
    content, content_type = metrics.expose(request.headers.get("accept", ""))
    return Response(content, headers={"Content-Type": content_type})


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


def _find_troubles(state: State) -> list[Reason]:
    """List what is wrong although /predict can keep its promise."""
    reasons = []
    if state.lifecycle.database_trouble is not None:
        reasons.append(state.lifecycle.database_trouble)
    if trouble := state.log.find_trouble():
        reasons.append(trouble)
    if state.reloader.trouble is not None:
        reasons.append(state.reloader.trouble)
    reasons += [found for found in (state.scoreboard.find_trouble(), state.clock.find_trouble()) if found]
    reasons += state.lifecycle.job_troubles.values()
    return reasons + _find_label_troubles(state.scoreboard.labels) + find_model_troubles(state.repository)


def _find_label_troubles(labels: LabelStatus | None) -> list[Reason]:
    """List why labels do not count: rejected ones for an hour, waiting ones for a day after their first hour."""
    reasons = []
    if labels is not None and labels.rejected_since is not None:
        versions = ", ".join(labels.rejected_by or ())
        detail = f"{labels.rejected_lately} labels of the last hour fit no class of {versions}: see GET /models"
        reasons.append(Reason(code="labels_rejected", detail=detail, since=labels.rejected_since))
    if labels is not None and labels.overdue_since is not None:
        detail = f"{labels.overdue} labels have waited for over an hour for a prediction that is not stored"
        reasons.append(Reason(code="labels_pending", detail=detail, since=labels.overdue_since))
    return reasons


def _count_labels(state: State) -> LabelHealth | UnsetType:
    labels = state.scoreboard.labels
    if labels is None or not (labels.pending or labels.rejected):
        return UNSET
    return LabelHealth(labels.pending, labels.pending_since, labels.rejected, labels.rejected_at)


def find_model_troubles(repository: ModelRepository) -> list[Reason]:
    """List what is wrong with versions, one reason for all versions with the same fault."""
    found: dict[str, list[Reason]] = {}
    for record in repository.records():
        for trouble in record.list_troubles():
            name, version = record.printable
            detail = f"{name} version {version}: {trouble.detail}"
            found.setdefault(trouble.code, []).append(msgspec.structs.replace(trouble, detail=detail))
    return [
        Reason(code=code, detail=_sum_up([one.detail for one in troubles]), since=min(one.since for one in troubles))
        for code, troubles in found.items()
    ]


def _sum_up(details: list[str]) -> str:
    """Join the first few of many details."""
    more = f" (and {len(details) - MAX_DETAILS} more)" if len(details) > MAX_DETAILS else ""
    return "; ".join(details[:MAX_DETAILS]) + more
