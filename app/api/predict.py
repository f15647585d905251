"""POST /predict: the steps of a prediction, from the body to the answer that promises a stored row."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.predict_batch import Answer, OnAnswer, Prediction, Predictions, PredictJob, answer_error, settle_future
from app.api.predict_rows import describe_row_limit, read_features
from app.api.predict_schemas import describe_predict_body
from app.errors import Fault, invalid
from app.prediction_log.record import TEXT_LIMIT, is_storable
from app.serving.repository import ServedModel
from app.state import State, get_state
from app.web.body import LARGE_BODY_BYTES, Row, check_headers, check_repeated_names, decode_body, read_body
from app.web.fields import ModelName
from app.web.operation import Operation
from app.web.requests import Headers, get_request_id

PATH = "/predict"


@Operation(
    id="predict",
    tag="predictions",
    summary="Score one row or many",
    answers={200: [Prediction, Predictions]},
    problems=[404, 413, 415, 422],
    bodies=lambda deployment: describe_predict_body(PredictBody, deployment),
)
async def post_predict(request: Request) -> Response:
    """Score one row or many; the 200 is sent when every row is safe."""
    state, scope = get_state(request.scope), request.scope
    body = await read_body(scope, request.receive, state.max_body_bytes)
    answered: asyncio.Future[Answer] = state.loop.create_future()
    predict(scope["headers"], body, state, get_request_id(scope), partial(settle_future, answered))
    status, headers, content = await answered
    return Response(content, status, {name.decode(): value.decode() for name, value in headers})


def predict(headers: Headers, body: bytes, state: State, request_id: str, on_answer: OnAnswer) -> PredictJob | None:
    """Serve POST /predict for both doors: call `on_answer` once, after this function has returned. Never raises.

    headers and body -> checked rows, in the model's order (`_read_job`) -> the model's batcher -> one run of the model
    for all requests that wait -> answers and log rows (`predict_batch._answer_batch`) -> the log promises to store the
    rows -> `on_answer`. Return the job, so that it can be abandoned when its client goes; None: there is no job (yet).
    """
    if len(body) < LARGE_BODY_BYTES:
        return _submit(_read_job, headers, body, state, request_id, on_answer)
    # A large body takes more than a millisecond to read: a thread does it, not the event loop.
    reading = state.loop.run_in_executor(None, _read_job, headers, body, state, request_id, on_answer)
    reading.add_done_callback(
        lambda _: _submit(lambda *_: reading.result(), headers, body, state, request_id, on_answer)
    )
    return None


def _submit(
    read: Callable[[Headers, bytes, State, str, OnAnswer], tuple[ServedModel, PredictJob]],
    headers: Headers,
    body: bytes,
    state: State,
    request_id: str,
    on_answer: OnAnswer,
) -> PredictJob | None:
    """Read the request's job and give it to the batcher of its model; answer the error if one of them fails."""
    try:
        served, job = read(headers, body, state, request_id, on_answer)
        served.batcher.submit(job)
    except Exception as error:  # a fault of the request, or a bug, which `answer_error` logs
        state.loop.call_soon(on_answer, answer_error(error, request_id))
        return None
    return job


def _read_job(
    headers: Headers, body: bytes, state: State, request_id: str, on_answer: OnAnswer
) -> tuple[ServedModel, PredictJob]:
    """Decode and check a request; return its model and its job with rows in the model's order. Raises 4xx."""
    check_headers(headers, state.max_body_bytes)
    asked = _decode_predict(body)
    rows = _list_rows(asked, state.max_batch_rows)
    served = state.repository.get(asked.model, None if asked.version is None else str(asked.version))
    signature = served.model.signature
    if len(rows) > signature.max_rows:
        raise invalid(Fault("/instances", "batch_size", describe_row_limit(len(rows), signature)))
    values = read_features(rows, signature, lambda: _list_pointers(asked))
    many = not isinstance(asked.instances, UnsetType)
    return served, PredictJob(values, _list_external_ids(asked), request_id, many, on_answer)


ExternalId = Annotated[str, Meta(max_length=TEXT_LIMIT)]


class PredictBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One row in `features`, or many in `instances`."""

    features: Annotated[
        Row | UnsetType, Meta(description="One row: its values by feature name, or in the model's order")
    ] = UNSET
    instances: Annotated[list[Row] | UnsetType, Meta(description="Many rows, each like `features`")] = UNSET
    model: Annotated[ModelName | None, Meta(description="The model; null: the default one")] = None
    version: Annotated[
        str | int | None, Meta(description="The version; null: the model's default one", examples=["1"])
    ] = None
    external_id: Annotated[
        ExternalId | None,
        Meta(description="The client's own key for the row, to send its label by", examples=["order-1"]),
    ] = None
    external_ids: Annotated[
        list[ExternalId | None] | None,
        Meta(description="The client's own key for each row, or null", examples=[["order-1", None]]),
    ] = None


DECODER = msgspec.json.Decoder(PredictBody)

BODY_EXAMPLE = '{"features": [1.5, 2.3]} for one row or {"instances": [[1.5, 2.3], [4, 5]]} for many'


def _decode_predict(body: bytes) -> PredictBody:
    """Decode the body; raise 400 or 422. A repeated name is 422, too: msgspec would silently keep the last value."""
    asked = decode_body(DECODER, body, example=BODY_EXAMPLE)
    if body.count(b":") == 1:
        return asked
    members = sum(value is not UNSET and value is not None for value in msgspec.structs.astuple(asked))
    rows = [asked.features] if isinstance(asked.instances, UnsetType) else asked.instances
    names = sum(len(row) for row in rows if isinstance(row, dict))
    if body.count(b":") != members + names:  # a repeated name, a colon in a text, or a null
        check_repeated_names(body)
    return asked


def _list_rows(asked: PredictBody, limit: int) -> list[Row]:
    """Return the rows of the body; raise 422 when its members exclude each other."""
    if isinstance(asked.features, UnsetType) == isinstance(asked.instances, UnsetType):
        raise invalid(
            Fault("", "features_or_instances", f"give either features or instances, for example {BODY_EXAMPLE}")
        )
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


def _list_pointers(asked: PredictBody) -> list[str]:
    """Return the JSON pointer of each row."""
    if isinstance(asked.instances, UnsetType):
        return ["/features"]
    return [f"/instances/{index}" for index in range(len(asked.instances))]


def _list_external_ids(asked: PredictBody) -> Sequence[str | None]:
    """Return the external id of each row; raise 422 for one that PostgreSQL cannot store."""
    if asked.external_id is None and isinstance(asked.instances, UnsetType):
        return NO_EXTERNAL_ID
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


NO_EXTERNAL_ID = (None,)
