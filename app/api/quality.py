"""GET /quality: how good each version is, per window, how good it was, and the counts behind it."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.database.pool import borrow_connection
from app.errors import Fault, NotFoundError, invalid
from app.quality.page_counts import ScoreCounts, TimeCounts, count_window
from app.quality.queries import QualityResult, fetch_result_history
from app.quality.refresh import KnownVersion, score_period
from app.serving.queries import fetch_versions
from app.state import State, get_state
from app.web.query import read_query

Instant = Annotated[datetime, Meta(tz=True)]

HISTORY_ROWS = 10_000
"""Of one answer: a week, a row a minute."""


class QualityQuery(msgspec.Struct):
    """Which versions; with since and until the period between them is counted now, instead of the job's windows."""

    model: str | None = None
    version: str | None = None
    role: Literal["live", "shadow"] = "live"
    since: Instant | None = None
    until: Instant | None = None


async def get_quality(request: Request) -> Response:
    """Answer the job's latest results, also while the database is away, or those of one period, from the rows."""
    query, state = read_query(request, QualityQuery), get_state(request.scope)
    if (query.since is None) != (query.until is None):
        raise invalid(Fault("?since" if query.since is None else "?until", "missing", "since and until go together"))
    results = state.scoreboard.results
    if query.since is not None and query.until is not None:
        async with borrow_connection(state.pool) as connection:
            versions = [KnownVersion(*row) for row in await fetch_versions(connection)]
            results = await score_period(connection, state.quality, versions, query.since, query.until)
    now = datetime.now(UTC)
    answer = {
        "results": [
            render_result(result, state, now)
            for result in results
            if query.model in (None, result.model_name)
            and query.version in (None, result.model_version)
            and query.role == result.role
        ]
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


def render_result(result: QualityResult, state: State, now: datetime) -> dict[str, object]:
    """Return a result as JSON; `confusion` is {label: {predicted class: rows}}, what is undefined null."""
    return {
        "model": result.model_name,
        "model_version": result.model_version,
        "role": result.role,
        "window": result.window_name,
        "since": result.since,
        "until": result.until,
        "computed_at": result.computed_at,
        **msgspec.structs.asdict(result.measures),
        "state": state.scoreboard.find_state(result, now),
        "objective": state.quality.objective,
        "label_delay_seconds": result.label_delay_seconds,
        "confusion": result.confusion,
    }


class HistoryQuery(msgspec.Struct):
    """Of which version and window, and since when: by default the last day."""

    model: str
    version: str
    window: str
    role: Literal["live", "shadow"] = "live"
    since: Instant | None = None
    until: Instant | None = None


async def get_history(request: Request) -> Response:
    """Answer past results, newest first: one a minute of the last day, one an hour before."""
    query, state = read_query(request, HistoryQuery), get_state(request.scope)
    until = query.until or datetime.now(UTC)
    since = query.since or until - timedelta(days=1)
    names = (query.model, query.version, query.role, query.window)
    async with borrow_connection(state.pool) as connection:
        rows = await fetch_result_history(connection, names, since, until, HISTORY_ROWS)
    return Response(msgspec.json.encode({"history": [dict(row) for row in rows]}), media_type="application/json")


class CountsQuery(msgspec.Struct):
    """Of which version, and behind which of its windows."""

    model: str
    version: str
    window: str
    role: Literal["live", "shadow"] = "live"


class QualityCounts(msgspec.Struct):
    """What stands behind the result that was computed at `until`: predictions over time, and by score."""

    since: datetime
    until: datetime
    by_time: list[TimeCounts]
    by_score: list[ScoreCounts]


async def get_counts(request: Request) -> Response:
    """Answer the ledger's counts of the window as the latest result has it."""
    query, state = read_query(request, CountsQuery), get_state(request.scope)
    names = (query.model, query.version, query.role)
    for result in state.scoreboard.results:
        if (result.model_name, result.model_version, result.role, result.window_name) == (*names, query.window):
            break
    else:
        raise NotFoundError("there is no result for this version, role and window; GET /quality has those that are")
    async with borrow_connection(state.pool) as connection:
        by_time, by_score = await count_window(connection, names, result.since, result.until)
    answer = QualityCounts(result.since, result.until, by_time, by_score)
    return Response(msgspec.json.encode(answer), media_type="application/json")
