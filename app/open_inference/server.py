"""GET /v2 and /v2/health: the server's name, version and health, in the form of the Open Inference Protocol."""

from importlib.metadata import version
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.api.health import Liveness, find_refusals
from app.errors import UnavailableError
from app.state import get_state
from app.web.json import answer_json
from app.web.operation import Operation

PROTOCOL_EXTENSIONS = ["binary_tensor_data", "model_repository", "model_configuration", "statistics"]


class ServerMetadata(msgspec.Struct):
    """What this server is."""

    name: Annotated[str, Meta(description="The server's name", examples=["scorekeeper"])]
    version: Annotated[str, Meta(description="The server's version", examples=["0.1.0"])]
    extensions: Annotated[
        list[str], Meta(description="The protocol's extensions that are supported", examples=[PROTOCOL_EXTENSIONS])
    ]


class ServerReadiness(msgspec.Struct):
    """Whether inference can keep its promise."""

    ready: Annotated[bool, Meta(description="Whether requests should be sent to this server now", examples=[True])]


@Operation(id="getServer", tag="open-inference", summary="What this server is", answers={200: [ServerMetadata]})
async def get_server(request: Request) -> Response:  # noqa: ARG001  # the same for everybody
    """Answer the server's name, version and the extensions that it has."""
    return answer_json(ServerMetadata("scorekeeper", version("scorekeeper"), PROTOCOL_EXTENSIONS))


@Operation(id="isServerLive", tag="open-inference", summary="Whether the process lives", answers={200: [Liveness]})
async def get_server_liveness(request: Request) -> Response:  # noqa: ARG001  # a process that answers is alive
    """Answer 200 as long as the event loop runs, whatever else is wrong."""
    return answer_json(Liveness(live=True))


@Operation(
    id="isServerReady",
    tag="open-inference",
    summary="Whether inference can keep its promise",
    answers={200: [ServerReadiness], 503: [ServerReadiness]},
)
async def get_server_readiness(request: Request) -> Response:
    """Answer 200 while inference can keep the promise that `POST /predict` gives, else 503."""
    if find_refusals(get_state(request.scope)):
        return answer_json(ServerReadiness(ready=False), 503, UnavailableError.headers)
    return answer_json(ServerReadiness(ready=True))
