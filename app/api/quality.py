"""GET /quality: how good each version is, per window."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.api.query import read_query
from app.database.pool import borrow_connection
from app.errors import Fault, invalid
from app.quality.queries import QualityResult, fetch_results
from app.quality.scoring import score_period
from app.state import get_state


class QualityQuery(msgspec.Struct):
    """Which versions; with since and until the period between them is counted now, instead of the job's windows."""

    model: str | None = None
    version: str | None = None
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None


async def get_quality(request: Request) -> Response:
    """Answer the job's latest results, or those of one period."""
    query, state = read_query(request, QualityQuery), get_state(request.scope)
    if (query.since is None) != (query.until is None):
        raise invalid(Fault("?since" if query.since is None else "?until", "missing", "since and until go together"))
    async with borrow_connection(state.pool) as connection:
        if query.since is not None and query.until is not None:
            results = await score_period(connection, "period", query.since, query.until, state.f1_average)
        else:
            results = await fetch_results(connection, [window.name for window in state.windows])
    answer = {
        "results": [
            render_result(result)
            for result in results
            if query.model in (None, result.model_name) and query.version in (None, result.model_version)
        ]
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def render_result(result: QualityResult) -> dict[str, object]:
    """Return a result as JSON; `confusion` is {label: {predicted class: rows}}."""
    return {
        "model": result.model_name,
        "model_version": result.model_version,
        "window": result.window_name,
        "since": result.since,
        "until": result.until,
        "state": result.state,
        "f1": result.f1,
        "average": result.average,
        "predictions": result.predictions,
        "labelled": result.labelled,
        "coverage": result.labelled / result.predictions if result.predictions else None,
        "confusion": result.confusion,
    }
