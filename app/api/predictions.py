"""GET /predictions and /predictions/{id}: the stored predictions, with their labels."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any
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
from app.serving.signature import ClassName
from app.state import get_state
from app.web.fields import ModelClass, ModelName, ModelVersion, PredictionId, Role, Since, Until
from app.web.json import answer_json
from app.web.operation import Operation
from app.web.query import read_query

END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)
LAST_ID = UUID(int=2**128 - 1)


class PageQuery(msgspec.Struct, rename={"predicted_class": "class"}):
    """Filters of a page, since <= created_at < until; `cursor` is the `next` of the previous page."""

    model: Annotated[ModelName | None, Meta(description="Only predictions of this model")] = None
    version: Annotated[ModelVersion | None, Meta(description="Only predictions of this version")] = None
    predicted_class: Annotated[
        str | None, Meta(description="Only predictions of this class, as text", examples=["1"])
    ] = None
    labelled: Annotated[
        bool | None, Meta(description="Only predictions with a label, or only those without", examples=[True])
    ] = None
    external_id: Annotated[
        str | None, Meta(description="Only predictions under this key of the client", examples=["order-1"])
    ] = None
    since: Since = EPOCH
    until: Until = END_OF_TIME
    limit: Annotated[int, Meta(ge=1, le=1000, description="Predictions on a page", examples=[50])] = 50
    cursor: Annotated[
        UUID, Meta(description="Where the page begins: `next` of the previous page", examples=[str(LAST_ID)])
    ] = LAST_ID


ReceivedAt = Annotated[datetime, Meta(description="When the server received it", examples=["2026-01-01T00:05:00Z"])]
ObservedAt = Annotated[datetime, Meta(description="When the class was observed", examples=["2026-01-01T00:04:00Z"])]
LabelClass = Annotated[
    ModelClass | None, Meta(description="The true class; null: the label was withdrawn", examples=[1])
]


class StoredLabel(msgspec.Struct):
    """The label that counts."""

    label: LabelClass
    observed_at: ObservedAt
    received_at: ReceivedAt


class ReceivedLabel(StoredLabel):
    """A label that came, and what became of it."""

    outcome: Annotated[
        str, Meta(description="What became of it: one of the counts that POST /labels answers", examples=["new"])
    ]


class StoredPrediction(msgspec.Struct):
    """A row of the log."""

    prediction_id: PredictionId
    created_at: Annotated[datetime, Meta(description="When the row was scored", examples=["2026-01-01T00:00:00Z"])]
    model: ModelName
    model_version: ModelVersion
    prediction: ModelClass
    score: Annotated[
        float,
        Meta(
            description="Probability of the positive class; with more than two classes, of the predicted one",
            examples=[0.9],
        ),
    ]
    probabilities: Annotated[
        dict[str, float] | None,
        Meta(
            description="Probabilities by class; null when the database does not know the version's classes",
            examples=[{"0": 0.1, "1": 0.9}],
        ),
    ]
    features: Annotated[
        msgspec.Raw,
        Meta(
            description="The values that were scored, by name",
            examples=[{"car_value": 1.5, "loan_length": 3.1}],
            extra_json_schema={
                "type": "object",
                "additionalProperties": {"type": ["boolean", "number", "string", "array", "null"]},
            },
        ),
    ]
    external_id: Annotated[
        str | None, Meta(description="The client's own key; null when it sent none or was erased", examples=["order-1"])
    ]
    request_id: Annotated[
        str | None,
        Meta(description="The request's id; null when erased", examples=["5f1c9d0a7be2430e0000000000000001"]),
    ]
    role: Role
    label: Annotated[StoredLabel | None, Meta(description="The label that counts; null when none has come")]
    erased_at: Annotated[
        datetime | None,
        Meta(
            description="When features, external id and request id were erased; null while they are kept",
            examples=[None],
        ),
    ]


class PredictionHistory(StoredPrediction):
    """A row of the log with every label that came for it."""

    label_history: Annotated[list[ReceivedLabel], Meta(description="Every label that came, the newest last")]


class PredictionPage(msgspec.Struct):
    """One page of predictions, the newest first."""

    predictions: Annotated[list[StoredPrediction], Meta(description="The rows")]
    next: Annotated[UUID | None, Meta(description="The cursor of the next page; null on the last", examples=[None])]


@Operation(
    id="listPredictions",
    tag="predictions",
    summary="Stored predictions, newest first",
    answers={200: [PredictionPage]},
    problems=[422],
    query=PageQuery,
)
async def list_predictions(request: Request) -> Response:
    """Answer one page, newest first; `next` is the cursor of the next page, null on the last."""
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
    following = shown[-1]["prediction_id"] if len(rows) > len(shown) else None
    return answer_json(PredictionPage([StoredPrediction(**_read_row(row)) for row in shown], following))


@Operation(
    id="getPrediction",
    tag="predictions",
    summary="One stored prediction with every label that came for it",
    answers={200: [PredictionHistory]},
    problems=[404, 422],
    path={"prediction_id": PredictionId},
)
async def get_prediction(request: Request) -> Response:
    """Answer one row with every label that came for it; 404 when no row with this id is stored, or not yet."""
    try:
        prediction_id = UUID(request.path_params["prediction_id"])
    except ValueError:
        fault = Fault("", "wrong_type", "a prediction id is a UUID")
        raise InvalidRequestError("the id in the path is not a UUID", [fault]) from None
    async with borrow_connection(get_state(request.scope).pool) as connection:
        row = await fetch_prediction(connection, prediction_id)
        if row is None:
            raise NotFoundError("no prediction with this id is stored yet; one that was not answered 200 may never be")
        classes = _name_classes(row)
        history = [
            ReceivedLabel(**{**label, "label": classes.get(label["label"], label["label"])})
            for label in await fetch_history(connection, prediction_id)
        ]
    return answer_json(PredictionHistory(**_read_row(row), label_history=history))


def _read_row(row: asyncpg.Record) -> dict[str, Any]:
    """Return the fields of a stored row, its classes in their own type, as they were answered."""
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
        "label": _read_label(row, classes) if row["labelled"] else None,
        "erased_at": row["erased_at"],
    }


def _read_label(row: asyncpg.Record, classes: Mapping[str, ClassName]) -> StoredLabel:
    return StoredLabel(classes.get(row["label"], row["label"]), row["observed_at"], row["received_at"])


def _name_classes(row: asyncpg.Record) -> dict[str, ClassName]:
    """Return the classes of a row's version by their text; empty when the database does not know the version."""
    return {str(name): name for name in msgspec.json.decode(row["classes"] or "[]")}
