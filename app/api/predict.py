"""POST /predict: the way of a prediction, from the body to the answer that promises a stored row."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import msgspec
import numpy as np
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.body import check_repeated_names, decode_body, read_body, run_sized
from app.api.features import Row, read_features
from app.api.middleware import get_request_id
from app.errors import Fault, invalid
from app.prediction_log.record import (
    TEXT_LIMIT,
    Record,
    encode_record,
    is_storable,
    make_prediction_ids,
    read_clock_ms,
    time_from_ms,
)
from app.serving.model import Model, Scores
from app.state import get_state

ExternalId = Annotated[str, Meta(max_length=TEXT_LIMIT)]


class PredictBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One row in `features`, or many in `instances`."""

    features: Row | UnsetType = UNSET
    instances: list[Row] | UnsetType = UNSET
    model: str | None = None
    version: str | int | None = None
    external_id: ExternalId | None = None
    external_ids: list[ExternalId | None] | None = None


class Prediction(msgspec.Struct, gc=False):
    """The answer for one row."""

    prediction_id: UUID
    prediction: int | str
    score: float
    probabilities: dict[str, float]
    model: str
    model_version: str


class Predictions(msgspec.Struct, gc=False):
    """The answer for many rows, in their order."""

    predictions: list[Prediction]
    model: str
    model_version: str


DECODER = msgspec.json.Decoder(PredictBody)


async def predict(request: Request) -> Response:
    """Score rows; the 200 is sent when the log has promised to store them."""
    state = get_state(request.scope)
    body = await read_body(request, state.max_body_bytes)
    asked = await run_sized(body, decode_predict, body)
    rows = list_rows(asked, state.max_batch_rows)
    model = state.repository.get(asked.model, None if asked.version is None else str(asked.version))
    values, features = await run_sized(body, read_features, rows, model.signature, list_pointers(asked))
    scores = await state.batchers[model].score(features)
    check_finite(scores, list_pointers(asked))
    request_id = get_request_id(request.scope)
    records = await run_sized(body, make_records, model, values, scores, list_external_ids(asked), request_id)
    await state.log.store(await run_sized(body, encode_records, records))
    await run_sized(body, count_predictions, model, scores)
    answer = await run_sized(body, encode_answer, model, records, scores, many=asked.instances is not UNSET)
    return Response(answer, media_type="application/json")


def decode_predict(body: bytes) -> PredictBody:
    """Decode the body; raise 400 or 422, also for a name that stands twice, of which msgspec keeps the last."""
    asked = decode_body(DECODER, body)
    members = sum(value is not UNSET and value is not None for value in msgspec.structs.astuple(asked))
    rows = [asked.features] if isinstance(asked.instances, UnsetType) else asked.instances
    names = sum(len(row) for row in rows if isinstance(row, dict))
    if body.count(b":") != members + names:  # a name twice, a colon in a text, or a null: look closer
        check_repeated_names(body)
    return asked


def list_rows(asked: PredictBody, limit: int) -> list[Row]:
    """Return the rows asked for; raise 422 when the body's members do not go together."""
    if isinstance(asked.features, UnsetType) == isinstance(asked.instances, UnsetType):
        raise invalid(Fault("", "features_or_instances", "give either features, for one row, or instances, for many"))
    if isinstance(asked.instances, UnsetType):
        if asked.external_ids is not None:
            raise invalid(Fault("/external_ids", "unknown_field", "one row takes external_id"))
        return [asked.features] if not isinstance(asked.features, UnsetType) else []
    rows = asked.instances
    if asked.external_id is not None:
        raise invalid(Fault("/external_id", "unknown_field", "many rows take external_ids"))
    if not 1 <= len(rows) <= limit:
        raise invalid(Fault("/instances", "batch_size", f"{len(rows)} rows, allowed are 1 to {limit}"))
    if asked.external_ids is not None and len(asked.external_ids) != len(rows):
        detail = f"{len(asked.external_ids)} external ids for {len(rows)} rows"
        raise invalid(Fault("/external_ids", "wrong_length", detail))
    return rows


def list_pointers(asked: PredictBody) -> list[str]:
    """Return the JSON pointer of each row."""
    if isinstance(asked.instances, UnsetType):
        return ["/features"]
    return [f"/instances/{index}" for index in range(len(asked.instances))]


def list_external_ids(asked: PredictBody) -> list[str | None]:
    """Return the external id of each row; raise 422 for one that PostgreSQL cannot store."""
    if isinstance(asked.instances, UnsetType):
        ids, pointers = [asked.external_id], ["/external_id"]
    else:
        ids = asked.external_ids or [None] * len(asked.instances)
        pointers = [f"/external_ids/{index}" for index in range(len(ids))]
    faults = [
        Fault(pointer, "not_storable", "text with a NUL character")
        for pointer, external_id in zip(pointers, ids, strict=True)
        if external_id is not None and not is_storable(external_id)
    ]
    if faults:
        raise invalid(*faults)
    return ids


def check_finite(scores: Scores, pointers: Sequence[str]) -> None:
    """Refuse rows for which the model's answer is not a finite number: 422, since only this input makes it so."""
    finite = np.isfinite(scores.probabilities).all(axis=1)
    if not finite.all():
        code, detail = "non_finite_output", "the model's answer for this row is not a finite number"
        raise invalid(*(Fault(pointers[index], code, detail) for index in np.flatnonzero(~finite).tolist()))


def make_records(
    model: Model,
    values: Sequence[Sequence[float | None]],
    scores: Scores,
    external_ids: Sequence[str | None],
    request_id: str,
) -> list[Record]:
    """Make the log's rows, every column encoded; one clock reading dates them all."""
    clock_ms = read_clock_ms()
    created_at = time_from_ms(clock_ms)
    names, classes = model.signature.feature_names, model.signature.class_texts
    return [
        Record(
            prediction_id=prediction_id,
            created_at=created_at,
            model_name=model.name,
            model_version=model.version,
            predicted_class=classes[predicted],
            score=score,
            probabilities=probabilities,
            features=dict(zip(names, row, strict=True)),
            external_id=external_id,
            request_id=request_id,
        )
        for prediction_id, row, predicted, score, probabilities, external_id in zip(
            make_prediction_ids(clock_ms, len(values)),
            values,
            scores.predicted.tolist(),
            scores.scores.tolist(),
            scores.probabilities.tolist(),
            external_ids,
            strict=True,
        )
    ]


def encode_records(records: Sequence[Record]) -> list[bytes]:
    """Encode rows for the log."""
    return [encode_record(record) for record in records]


def count_predictions(model: Model, scores: Scores) -> None:
    """Count answered predictions by class, and their scores."""
    counts = np.bincount(scores.predicted, minlength=len(model.signature.classes))
    for name, count in zip(model.signature.class_texts, counts.tolist(), strict=True):
        if count:
            metrics.PREDICTIONS.labels(model.name, model.version, name).inc(count)
    histogram = metrics.PREDICTION_SCORES.labels(model.name, model.version)
    for score in scores.scores.tolist():
        histogram.observe(score)


def encode_answer(model: Model, records: Sequence[Record], scores: Scores, *, many: bool) -> bytes:
    """Encode one prediction, or many."""
    texts, classes = model.signature.class_texts, model.signature.classes
    predictions = [
        Prediction(
            record.prediction_id,
            classes[predicted],
            record.score,
            dict(zip(texts, probabilities, strict=True)),
            model.name,
            model.version,
        )
        for record, predicted, probabilities in zip(
            records, scores.predicted.tolist(), scores.probabilities.tolist(), strict=True
        )
    ]
    if not many:
        return msgspec.json.encode(predictions[0])
    return msgspec.json.encode(Predictions(predictions, model.name, model.version))
