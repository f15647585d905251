"""GET /quality: how good each version is, per window, how good it was, and the counts behind it."""

from datetime import UTC, datetime, timedelta
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
"""Of one answer: a week, a row a minute."""


class QualityQuery(msgspec.Struct):
    """Which versions; with since and until the period between them is counted now, instead of the job's windows."""

    model: Annotated[ModelName | None, Meta(description="Only this model")] = None
    version: Annotated[ModelVersion | None, Meta(description="Only this version")] = None
    role: Role = "live"
    since: Annotated[Since | None, Meta(description="Where the period begins; goes with `until`")] = None
    until: Annotated[Until | None, Meta(description="Where the period ends; goes with `since`")] = None


@Operation(
    id="getQuality",
    tag="quality",
    summary="How good each version is: per window, or between since and until",
    answers={200: [QualityResults]},
    problems=[422],
    query=QualityQuery,
)
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
    shown = [
        describe_result(result, state, now)
        for result in results
        if query.model in (None, result.model_name)
        and query.version in (None, result.model_version)
        and query.role == result.role
    ]
    return answer_json(QualityResults(shown))


def describe_result(result: QualityResult, state: State, now: datetime) -> Quality:
    """Return a result as it is answered: what is undefined is null."""
    measures = msgspec.structs.asdict(result.measures)
    measures |= {"state": state.scoreboard.find_state(result, now), "confusion": result.confusion, "role": result.role}
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
    """Of which version and window, and since when: by default the last day."""

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
    until = query.until or datetime.now(UTC)
    since = query.since or until - timedelta(days=1)
    names = (query.model, query.version, query.role, query.window)
    async with borrow_connection(state.pool) as connection:
        rows = await fetch_result_history(connection, names, since, until, HISTORY_ROWS)
    return answer_json(QualityHistory([PastQuality(**row) for row in rows]))


class CountsQuery(msgspec.Struct):
    """Of which version, and behind which of its windows."""

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
    """Answer the ledger's counts of the window as the latest result has it; 404 when there is no such result."""
    query, state = read_query(request, CountsQuery), get_state(request.scope)
    names = (query.model, query.version, query.role)
    for result in state.scoreboard.results:
        if (result.model_name, result.model_version, result.role, result.window_name) == (*names, query.window):
            break
    else:
        raise NotFoundError("there is no result for this version, role and window; GET /quality has those that are")
    async with borrow_connection(state.pool) as connection:
        by_time, by_score = await count_window(connection, names, result.since, result.until)
    return answer_json(QualityCounts(result.since, result.until, by_time, by_score))
