"""The paths of the Open Inference Protocol."""

from typing import Annotated

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.open_inference.infer import infer
from app.open_inference.models import get_config, get_metadata, get_model_readiness, list_model_names
from app.open_inference.repository import get_index, load_highest, unload_all
from app.open_inference.server import get_server, get_server_liveness, get_server_readiness
from app.open_inference.statistics import get_statistics
from app.open_inference.wire import UnsupportedError
from app.web.fields import MODEL_PATH
from app.web.operation import Operation

Rest = Annotated[str, Meta(description="The rest of the extension's path", examples=["status"])]


@Operation(
    id="refuse",
    tag="unsupported",
    summary="An extension of the protocol that is not supported",
    answers={},
    problems=[501],
    path={**MODEL_PATH, "rest": Rest},
)
async def _refuse_extension(request: Request) -> Response:
    """Answer 501: this extension is not supported."""
    raise UnsupportedError(f"{request.url.path} belongs to an extension that is not supported")


MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")

REFUSED_PATHS = (
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/tpusharedmemory/{rest:path}",
    "/v2/xpusharedmemory/{rest:path}",
    "/v2/trace/{rest:path}",
    "/v2/logging",
    "/v2/models/{model}/trace/setting",
)

OPEN_INFERENCE_ROUTES = [
    Route("/v2", get_server),
    Route("/v2/health/live", get_server_liveness),
    Route("/v2/health/ready", get_server_readiness),
    Route("/v2/models", list_model_names),
    Route("/v2/models/stats", get_statistics),
    *(Route(path, get_metadata) for path in MODEL_PATHS),
    *(Route(f"{path}/ready", get_model_readiness) for path in MODEL_PATHS),
    *(Route(f"{path}/infer", infer, methods=["POST"]) for path in MODEL_PATHS),
    *(Route(f"{path}/config", get_config) for path in MODEL_PATHS),
    *(Route(f"{path}/stats", get_statistics) for path in MODEL_PATHS),
    Route("/v2/repository/index", get_index, methods=["POST"]),
    Route("/v2/repository/models/{model}/load", load_highest, methods=["POST"]),
    Route("/v2/repository/models/{model}/unload", unload_all, methods=["POST"]),
    *(Route(path, _refuse_extension, methods=["GET", "POST"]) for path in REFUSED_PATHS),
    *(
        Route(f"{path}/{name}", _refuse_extension, methods=["POST"])
        for path in MODEL_PATHS
        for name in ("generate", "generate_stream")
    ),
]
