"""POST /v2/models/{model}/infer: a prediction by the Open Inference Protocol, in one batch with those of /predict."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.api.predict_batch import Prediction, PredictJob, settle_future
from app.errors import MalformedBodyError
from app.open_inference.rows import list_inputs, list_outputs, make_outputs, read_external_ids, read_feature_rows
from app.open_inference.tensors import DATATYPES, NamedTensor, read_binary
from app.open_inference.wire import (
    HEADER_LENGTH,
    InferAnswer,
    InferBody,
    InferParameters,
    InferRequest,
    choose_outputs,
    decode_request,
    decompress,
    encode_answer,
    read_header_length,
)
from app.serving.features import ModelInput
from app.serving.model import Model
from app.serving.signature import Signature
from app.state import State, get_state
from app.web.body import LARGE_BODY_BYTES, receive_body
from app.web.deployment import Deployment
from app.web.fields import MODEL_PATH
from app.web.operation import Body, Example, Operation
from app.web.requests import get_request_id


@dataclass(slots=True, kw_only=True)
class InferJob(PredictJob):
    """One inference request; `outputs` has each output to answer, and whether it is sent in binary."""

    model: Model
    id: str | None
    outputs: Mapping[str, bool]

    def render(self, predictions: list[Prediction]) -> Response:
        """Make the answer."""
        ids = [str(one.prediction_id) for one in predictions]
        answer = InferAnswer(
            model_name=self.model.name,
            model_version=self.model.version,
            id=UNSET if self.id is None else self.id,
            parameters=InferParameters(msgspec.json.encode(ids).decode()),
            outputs=[],
        )
        tensors = make_outputs(predictions, self.model.signature)
        body, json_size = encode_answer(answer, [(tensors[name], binary) for name, binary in self.outputs.items()])
        headers = {"X-Prediction-Id": ids[0]} if len(ids) == 1 else {}
        if json_size is None:
            return Response(body, headers=headers, media_type="application/json")
        headers["Inference-Header-Content-Length"] = str(json_size)
        return Response(body, headers=headers, media_type="application/octet-stream")

    def fail(self, error: Exception) -> None:
        """Make the handler raise the error."""
        self.on_answer(error)

    def point_at(self, row: int) -> str:
        """Return a pointer to this row of the request."""
        return f"/rows/{row}"


def _list_infer_bodies(deployment: Deployment) -> list[Body]:
    """Return the body; its example is one row for the default model, which the example of the path names."""
    shape = deployment.models[0]
    inputs = [_make_example(one, shape.example[one.start : one.stop]) for one in shape.inputs]
    summary = f"One row: {shape.name} {shape.versions[-1]}"
    return [
        Body(InferBody, {"one row": Example(summary, {"inputs": inputs, "parameters": {"external_id": "order-3"}})})
    ]


def _make_example(one: ModelInput, values: Sequence[object]) -> dict[str, object]:
    """Return an input with one row."""
    data = list(values[0] if one.is_sequence and isinstance(values[0], tuple) else values)
    datatype = "FP32" if one.type.datatype == "FP16" else one.type.datatype  # JSON has no FP16
    return {
        "name": one.name,
        "shape": [1] if one.is_vector else [1, len(data)],
        "datatype": datatype,
        "data": data,
    }


@Operation(
    id="infer",
    tag="open-inference",
    summary="Score rows that come as tensors",
    answers={200: [InferAnswer, "application/octet-stream"]},
    problems=[404, 413, 415, 501],
    path=MODEL_PATH,
    bodies=_list_infer_bodies,
)
async def infer(request: Request) -> Response:
    """Score rows that come as tensors; the 200 is sent when every row is safe, as with `POST /predict`.

    Tensors of the request and the answer may also be bytes that follow the JSON; then `Inference-Header-Content-Length`
    has the size of the JSON.
    """
    state, path = get_state(request.scope), request.path_params
    served = state.repository.get(path["model"], path.get("version"))
    started, outcome = time.perf_counter(), "fail"
    try:
        body = await receive_body(request.receive, state.max_body_bytes)
        answered: asyncio.Future[Response] = state.loop.create_future()
        if len(body) < LARGE_BODY_BYTES and "content-encoding" not in request.headers:
            job = _read_infer_job(request, body, state, served.model, answered)
        else:  # more than a millisecond of work, at least once decompressed: not on the event loop
            job = await asyncio.to_thread(_read_infer_job, request, body, state, served.model, answered)
        served.batcher.submit(job)  # -> predict_batch._answer_batch -> log -> on_answer
        response, outcome = await answered, "success"
    finally:
        seconds = time.perf_counter() - started
        metrics.OPEN_INFERENCE_SECONDS.labels(served.model.name, served.model.version, outcome).observe(seconds)
    return response


def _read_infer_job(
    request: Request, body: bytes, state: State, model: Model, answered: "asyncio.Future[Response]"
) -> InferJob:
    """Decode and check the body; return a job with rows in the model's order. Raises 400, 413, 415, 422 or 501.

    Content-Type is ignored: clients send none, or a wrong one.
    """
    body = decompress(body, request.headers.get("content-encoding", "identity").lower(), state.max_body_bytes)
    asked = _read_request(request.headers.get(HEADER_LENGTH), body, model.signature)
    outputs = choose_outputs(asked, [spec.name for spec in list_outputs(model.signature)])
    rows = read_feature_rows(asked, model.signature, state.max_batch_rows)
    return InferJob(
        values=rows,
        external_ids=read_external_ids(asked.parameters, len(rows)),
        request_id=get_request_id(request.scope),
        many=True,
        on_answer=partial(settle_future, answered),
        model=model,
        id=asked.id,
        outputs=outputs,
    )


def _read_request(header_length: str | None, body: bytes, signature: Signature) -> InferRequest:
    """Decode the request. If the header says that 0 bytes are JSON, the body is the raw data of the only input."""
    json_size = len(body) if header_length is None else read_header_length(header_length, len(body))
    if json_size or header_length is None:
        return decode_request(body, json_size)
    specs = list_inputs(signature)
    datatype, width = specs[0].datatype, specs[0].width
    row_bytes = width * DATATYPES[datatype].wire.itemsize
    if len(specs) > 1 or width == -1 or DATATYPES[datatype].wire == np.dtype(object):
        raise MalformedBodyError("raw binary data is only for models with a single input, of numbers and a fixed width")
    if not body or len(body) % row_bytes:
        raise MalformedBodyError(f"{len(body)} bytes of raw binary data, a row has {row_bytes}")
    array = read_binary(specs[0].name, datatype, (len(body) // row_bytes, width), body)
    return InferRequest([NamedTensor(specs[0].name, datatype, array)], binary_outputs=True)
