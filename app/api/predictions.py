"""GET /predictions and /predictions/{id}: what the log holds, with labels."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.database.pool import borrow_connection
from app.errors import Fault, InvalidRequestError, NotFoundError
from app.prediction_log.queries import PageFilter, fetch_page, fetch_prediction
from app.prediction_log.record import EPOCH
from app.quality.label_queries import fetch_history
from app.state import get_state
from app.web.query import read_query

END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)
LAST_ID = UUID(int=2**128 - 1)


class PageQuery(msgspec.Struct, rename={"predicted_class": "class"}):
    """Filters of a page, since <= created_at < until; `cursor` is the `next` of the page before."""

    model: str | None = None
    version: str | None = None
    predicted_class: str | None = None
    labelled: bool | None = None
    external_id: str | None = None
    since: Annotated[datetime, Meta(tz=True)] = EPOCH
    until: Annotated[datetime, Meta(tz=True)] = END_OF_TIME
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    cursor: UUID = LAST_ID


async def list_predictions(request: Request) -> Response:
    """Answer one page, newest first; `next` is the cursor of the following one, null on the last."""
    query = read_query(request, PageQuery)
    page = PageFilter(
        query.since,
        query.until,
        query.cursor,
        query.model,
        query.version,
        query.predicted_class,
        query.labelled,
        query.external_id,
    )
    async with borrow_connection(get_state(request.scope).pool) as connection:
        rows = await fetch_page(connection, page, query.limit + 1)
    shown = rows[: query.limit]
    following = str(shown[-1]["prediction_id"]) if len(rows) > len(shown) else None
    answer = {"predictions": [render_prediction(row) for row in shown], "next": following}
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def get_prediction(request: Request) -> Response:
    """Answer one row with every label that came for it."""
    try:
        prediction_id = UUID(request.path_params["prediction_id"])
    except ValueError:
        fault = Fault("", "wrong_type", "a prediction id is a UUID")
        raise InvalidRequestError("the id in the path is no UUID", [fault]) from None
    async with borrow_connection(get_state(request.scope).pool) as connection:
        row = await fetch_prediction(connection, prediction_id)
        if row is None:
            raise NotFoundError("no prediction with this id is stored; one that was not answered 200 may never be")
        classes = _name_classes(row)
        history = [
            {**label, "label": classes.get(label["label"], label["label"])}
            for label in await fetch_history(connection, prediction_id)
        ]
    answer = {**render_prediction(row), "label_history": history}
    return Response(msgspec.json.encode(answer), media_type="application/json")


def render_prediction(row: asyncpg.Record) -> dict[str, object]:
    """Return a stored row as JSON: classes in their own type, as they were answered."""
    classes = _name_classes(row)
    return {
        "prediction_id": row["prediction_id"],
        "created_at": row["created_at"],
        "model": row["model_name"],
        "model_version": row["model_version"],
        "prediction": classes.get(row["predicted_class"], row["predicted_class"]),
        "score": row["score"],
        "probabilities": dict(zip(classes, row["probabilities"], strict=True)) if classes else None,
        "features": msgspec.Raw(row["features"].encode()),
        "external_id": row["external_id"],
        "request_id": row["request_id"],
        "role": row["role"],
        "label": _render_label(row, classes) if row["labelled"] else None,
    }


def _render_label(row: asyncpg.Record, classes: Mapping[str, int | str]) -> dict[str, object]:
    label = classes.get(row["label"], row["label"])
    return {"label": label, "observed_at": row["observed_at"], "received_at": row["received_at"]}


def _name_classes(row: asyncpg.Record) -> dict[str, int | str]:
    """Return the classes of a row's version by their text; none when the version is not known to the database."""
    return {str(name): name for name in msgspec.json.decode(row["classes"] or "[]")}
