"""POST /models/{model}/load, unload and pin: the operator's word on which versions are served."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.models import render_served
from app.state import get_state
from app.web.body import decode_body, read_body

MAX_BODY_BYTES = 1024


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version; none: the highest in MODEL_DIR."""

    version: str | int | None = None


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version."""

    version: str | int


class PinBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version is the default from now on; null: the highest."""

    version: str | int | None


LOAD_DECODER = msgspec.json.Decoder(LoadBody)
UNLOAD_DECODER = msgspec.json.Decoder(UnloadBody)
PIN_DECODER = msgspec.json.Decoder(PinBody)


async def load_version(request: Request) -> Response:
    """Answer when the version takes requests, as GET does; 404, 409 or 422 say why it does not."""
    body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    asked = decode_body(LOAD_DECODER, body or b"{}").version
    state = get_state(request.scope)
    served = await state.reloader.load(request.path_params["model"], None if asked is None else str(asked))
    return Response(msgspec.json.encode(render_served(served, state)), media_type="application/json")


async def unload_version(request: Request) -> Response:
    """Answer when the version takes no more requests; those under way finish on it. 409: it must stay."""
    body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    name, version = request.path_params["model"], str(decode_body(UNLOAD_DECODER, body).version)
    await get_state(request.scope).reloader.unload(name, version)
    answer = {"name": name, "version": version, "state": "unloaded"}
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def pin_version(request: Request) -> Response:
    """Answer which version is the model's default now, and will be after a restart."""
    body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    name, asked = request.path_params["model"], decode_body(PIN_DECODER, body).version
    state = get_state(request.scope)
    await state.reloader.pin(name, None if asked is None else str(asked))
    default = state.repository.find_default(name)
    answer = {
        "name": name,
        "pinned": state.repository.pins.get(name),
        "default_version": None if default is None else default.model.version,
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


ROUTES = [
    Route("/models/{model}/load", load_version, methods=["POST"]),
    Route("/models/{model}/unload", unload_version, methods=["POST"]),
    Route("/models/{model}/pin", pin_version, methods=["POST"]),
]
"""Not protected by themselves: whatever asks for the scope `admin` goes around these."""
