"""GET /quality, /quality/history, /quality/counts: results per version and window, past results, their counts."""

from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.api.quality_answers import PastQuality, Quality, QualityCounts, QualityHistory, QualityResults
from app.database.pool import borrow_connection
from app.errors import Fault, NotFoundError, invalid
from app.quality.page_counts import count_window
from app.quality.queries import QualityResult, fetch_result_history
from app.quality.refresh import KnownVersion, score_period
from app.serving.queries import fetch_versions
from app.state import State, get_state
from app.web.fields import ModelName, ModelVersion, Role, Since, Until, WindowName
from app.web.json import answer_json
from app.web.operation import Operation
from app.web.query import read_query

HISTORY_ROWS = 10_000
"""Rows in one answer: a week, at one row per minute."""


class QualityQuery(msgspec.Struct):
    """Which versions. With `since` and `until`, this period is counted now, instead of the job's windows."""

    model: Annotated[ModelName | None, Meta(description="Only this model")] = None
    version: Annotated[ModelVersion | None, Meta(description="Only this version")] = None
    role: Role = "live"
    since: Annotated[Since | None, Meta(description="Start of the period; needs `until`")] = None
    until: Annotated[Until | None, Meta(description="End of the period; needs `since`")] = None


@Operation(
    id="getQuality",
    tag="quality",
    summary="How good each version is: per window, or between since and until",
    answers={200: [QualityResults]},
    problems=[422],
    query=QualityQuery,
)
async def get_quality(request: Request) -> Response:
    """Answer the job's latest results, also without the database; for a period, count the rows now."""
    query, state = read_query(request, QualityQuery), get_state(request.scope)
    if (query.since is None) != (query.until is None):
        raise invalid(Fault("?since" if query.since is None else "?until", "missing", "since and until go together"))
    results = state.scoreboard.results
    if query.since is not None and query.until is not None:
        async with borrow_connection(state.pool) as connection:
            versions = [KnownVersion(*row) for row in await fetch_versions(connection)]
            results = await score_period(connection, state.quality, versions, query.since, query.until)
    shown = [
        _describe_result(result, state)
        for result in results
        if query.model in (None, result.model_name)
        and query.version in (None, result.model_version)
        and query.role == result.role
    ]
    return answer_json(QualityResults(shown))


def _describe_result(result: QualityResult, state: State) -> Quality:
    """Return a result as it is answered; undefined measures are null."""
    measures = msgspec.structs.asdict(result.measures)
    measures |= {"state": state.scoreboard.find_state(result), "confusion": result.confusion, "role": result.role}
    return Quality(
        model=result.model_name,
        model_version=result.model_version,
        window=result.window_name,
        since=result.since,
        until=result.until,
        computed_at=result.computed_at,
        objective=state.quality.objective,
        label_delay_seconds=result.label_delay_seconds,
        **measures,
    )


class HistoryQuery(msgspec.Struct):
    """Which version and window, and which period: by default the last day."""

    model: ModelName
    version: ModelVersion
    window: WindowName
    role: Role = "live"
    since: Annotated[Since | None, Meta(description="From when; null: a day before `until`")] = None
    until: Annotated[Until | None, Meta(description="Up to when; null: now")] = None


@Operation(
    id="getQualityHistory",
    tag="quality",
    summary="How good a version was",
    answers={200: [QualityHistory]},
    problems=[422],
    query=HistoryQuery,
)
async def get_history(request: Request) -> Response:
    """Answer past results, newest first: one for each minute of the last day, one for each hour before."""
    query, state = read_query(request, HistoryQuery), get_state(request.scope)
    until = query.until or state.clock.now()
    since = query.since or until - timedelta(days=1)
    names = (query.model, query.version, query.role, query.window)
    async with borrow_connection(state.pool) as connection:
        rows = await fetch_result_history(connection, names, since, until, HISTORY_ROWS)
    return answer_json(QualityHistory([PastQuality(**row) for row in rows]))


class CountsQuery(msgspec.Struct):
    """Which version, and which of its windows."""

    model: ModelName
    version: ModelVersion
    window: WindowName
    role: Role = "live"


@Operation(
    id="getQualityCounts",
    tag="quality",
    summary="The predictions behind a version's numbers: over time, and by score",
    answers={200: [QualityCounts]},
    problems=[404, 422],
    query=CountsQuery,
)
async def get_counts(request: Request) -> Response:
    """Answer the ledger's counts over the period of the window's latest result; 404 when there is no result."""
    query, state = read_query(request, CountsQuery), get_state(request.scope)
    names = (query.model, query.version, query.role)
    for result in state.scoreboard.results:
        if (result.model_name, result.model_version, result.role, result.window_name) == (*names, query.window):
            break
    else:
        raise NotFoundError("there is no result for this version, role and window; GET /quality lists the results")
    async with borrow_connection(state.pool) as connection:
        by_time, by_score = await count_window(connection, names, result.since, result.until)
    return answer_json(QualityCounts(result.since, result.until, by_time, by_score))
