"""POST /v2/repository: list versions, load and unload models. Not protected, like /models."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.errors import ConflictError
from app.open_inference.models import find_model
from app.open_inference.wire import UnsupportedError
from app.serving.repository import VersionRecord
from app.state import get_state
from app.web.body import decode_body, receive_body
from app.web.deployment import Deployment
from app.web.fields import MODEL_PATH, ModelName, ModelVersion
from app.web.json import answer_json
from app.web.operation import Body, Example, Operation


class IndexBody(msgspec.Struct):
    """Which versions are asked for."""

    ready: Annotated[bool, Meta(description="Only versions that take requests", examples=[True])] = False


class IndexEntry(msgspec.Struct):
    """A version in MODEL_DIR."""

    name: ModelName
    version: ModelVersion
    state: Annotated[Literal["READY", "UNAVAILABLE"], Meta(description="Whether it takes requests", examples=["READY"])]
    reason: Annotated[str, Meta(description="Why it takes none", examples=[""])]


class ControlBody(msgspec.Struct):
    """The body of a request to load or unload."""

    parameters: Annotated[
        dict[str, Any] | None,
        Meta(description="Parameters of the protocol; `config` and `file:` are answered 501", examples=[{}]),
    ] = None


class Done(msgspec.Struct):
    """An empty object: the request is done."""


INDEX_DECODER = msgspec.json.Decoder(IndexBody)
CONTROL_DECODER = msgspec.json.Decoder(ControlBody)


@Operation(
    id="getRepositoryIndex",
    tag="open-inference",
    summary="Every version in MODEL_DIR",
    answers={200: [list[IndexEntry]]},
    problems=[413],
    bodies=lambda _: [
        Body(IndexBody, {"all": Example("All versions", {}), "ready": Example("Ready", {"ready": True})})
    ],
)
async def get_index(request: Request) -> Response:
    """Answer every version in MODEL_DIR that is known, and why it takes no requests."""
    state = get_state(request.scope)
    body = await receive_body(request.receive, state.max_body_bytes)
    index = [IndexEntry(one.model.name, one.model.version, "READY", "") for one in state.repository.all()]
    if not decode_body(INDEX_DECODER, body or b"{}").ready:
        index += [_describe_missing(record) for record in state.repository.records() if record.is_missing]
    return answer_json(index)


def _describe_missing(record: VersionRecord) -> IndexEntry:
    return IndexEntry(*record.printable, "UNAVAILABLE", "unloaded" if record.trouble is None else record.trouble.detail)


CONTROL_EXAMPLES = {"nothing": Example("Without parameters", {})}


def _choose_other_model(deployment: Deployment) -> Mapping[str, object]:
    """Return a model that may be unloaded: not the default one, if there is another."""
    return {"model": deployment.models[-1].name}


@Operation(
    id="loadModel",
    tag="open-inference",
    summary="Serve a model's highest version in MODEL_DIR",
    answers={200: [Done]},
    problems=[404, 409, 413, 501],
    path=MODEL_PATH,
    bodies=lambda _: [Body(ControlBody, CONTROL_EXAMPLES)],
)
async def load_highest(request: Request) -> Response:
    """Answer when the highest version in MODEL_DIR takes requests; if it does so already, it is not reloaded."""
    await _read_control(request)
    await get_state(request.scope).reloader.load(request.path_params["model"], None)
    return answer_json(Done())


@Operation(
    id="unloadModel",
    tag="open-inference",
    summary="Unload all versions of a model, so that it takes no more requests",
    answers={200: [Done]},
    problems=[404, 409, 413, 501],
    path=MODEL_PATH,
    bodies=lambda _: [Body(ControlBody, CONTROL_EXAMPLES)],
    examples=_choose_other_model,
)
async def unload_all(request: Request) -> Response:
    """Answer when no version of the model takes requests; 409: it is the default model, or one is pinned."""
    await _read_control(request)
    state, name = get_state(request.scope), request.path_params["model"]
    find_model(request)
    if name == state.repository.default_model or name in state.repository.pins:
        raise ConflictError("this model stays loaded: it is the default model, or has a pinned version")
    for served in [one for one in state.repository.all() if one.model.name == name]:
        await state.reloader.unload(name, served.model.version)
    return answer_json(Done())


async def _read_control(request: Request) -> None:
    """Read the body of load or unload; raise 501 if it brings a configuration or a model file."""
    body = await receive_body(request.receive, get_state(request.scope).max_body_bytes)
    parameters = decode_body(CONTROL_DECODER, body or b"{}").parameters or {}
    if any(name == "config" or name.startswith("file:") for name in parameters):
        raise UnsupportedError("models come from MODEL_DIR, not with the request")
