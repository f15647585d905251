"""GET /v2 and what is below it beside inference: health, metadata, statistics, the repository of models."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import msgspec
from prometheus_client import Histogram, Summary
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app import metrics
from app.api.health import find_refusals
from app.errors import ConflictError, UnavailableError
from app.open_inference.infer import infer
from app.open_inference.rows import TensorSpec, list_inputs, list_outputs
from app.open_inference.wire import UnsupportedError
from app.serving.model import Model
from app.serving.repository import VersionRecord
from app.state import State, get_state
from app.web.body import decode_body, receive_body

EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")
PLATFORM = "onnxruntime_onnx"


class IndexBody(msgspec.Struct):
    """Whether only versions that take requests are asked for."""

    ready: bool = False


class ControlBody(msgspec.Struct):
    """What comes with load and unload."""

    parameters: dict[str, Any] | None = None


INDEX_DECODER = msgspec.json.Decoder(IndexBody)
CONTROL_DECODER = msgspec.json.Decoder(ControlBody)


async def get_server(request: Request) -> Response:  # noqa: ARG001  # the same for everybody
    """Answer what this server is and which extensions it has."""
    return _json({"name": "scorekeeper", "version": version("scorekeeper"), "extensions": EXTENSIONS})


async def get_live(request: Request) -> Response:  # noqa: ARG001  # a process that answers is alive, whatever it asks
    """Answer 200 as long as the event loop turns."""
    return _json({"live": True})


async def get_ready(request: Request) -> Response:
    """Answer 200 while inference can keep the promise that /predict gives, else 503."""
    return _render_ready({}, get_state(request.scope))


async def get_model_ready(request: Request) -> Response:
    """Answer 200 while this version takes requests, 404 when there is none such."""
    model = find_model(request)
    return _render_ready({"name": model.name}, get_state(request.scope))


async def list_models(request: Request) -> Response:
    """Answer the names of the models that take requests."""
    return _json({"models": list({served.model.name: None for served in get_state(request.scope).repository.all()})})


async def get_model(request: Request) -> Response:
    """Answer a model's inputs and outputs."""
    model = find_model(request)
    served = get_state(request.scope).repository.all()
    answer = {
        "name": model.name,
        "versions": [one.model.version for one in served if one.model.name == model.name],
        "platform": PLATFORM,
        "inputs": [_describe_tensor(spec) for spec in list_inputs(model.signature)],
        "outputs": [_describe_tensor(spec) for spec in list_outputs(model.signature)],
    }
    return _json(answer)


async def get_config(request: Request) -> Response:
    """Answer a model's configuration in the words of Triton's, as far as there is something to say."""
    model = find_model(request)
    answer = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": get_state(request.scope).max_batch_rows,
        "input": [_configure_tensor(spec) for spec in list_inputs(model.signature)],
        "output": [_configure_tensor(spec) for spec in list_outputs(model.signature)],
    }
    return _json(answer)


async def get_statistics(request: Request) -> Response:
    """Answer what was counted since the start: of one version, of one model's, or of all."""
    path, served = request.path_params, get_state(request.scope).repository.all()
    if "version" in path:
        models = [find_model(request)]
    elif "model" in path:
        find_model(request)
        models = [one.model for one in served if one.model.name == path["model"]]
    else:
        models = [one.model for one in served]
    return _json({"model_stats": [_count_model(model) for model in models]})


async def get_index(request: Request) -> Response:
    """Answer every version in MODEL_DIR that is known, and why it takes no requests."""
    state = get_state(request.scope)
    body = await receive_body(request.receive, state.max_body_bytes)
    index = [
        {"name": one.model.name, "version": one.model.version, "state": "READY", "reason": ""}
        for one in state.repository.all()
    ]
    if not decode_body(INDEX_DECODER, body or b"{}").ready:
        index += [_describe_missing(record) for record in state.repository.records() if record.is_missing]
    return _json(index)


async def load_model(request: Request) -> Response:
    """Serve the highest version in MODEL_DIR; one that is served already is left as it is."""
    await _read_control(request)
    await get_state(request.scope).reloader.load(request.path_params["model"], None)
    return _json({})


async def unload_model(request: Request) -> Response:
    """Let all versions of a model take no more requests; 409 for what the server cannot be without."""
    await _read_control(request)
    state, name = get_state(request.scope), request.path_params["model"]
    find_model(request)
    if name == state.repository.default_model or name in state.repository.pins:
        raise ConflictError("this model stays: it is the default one, or pinned")
    for served in [one for one in state.repository.all() if one.model.name == name]:
        await state.reloader.unload(name, served.model.version)
    return _json({})


async def refuse_extension(request: Request) -> Response:
    """Say that an extension of the protocol is not here."""
    raise UnsupportedError(f"{request.url.path} belongs to an extension that is not supported")


def find_model(request: Request) -> Model:
    """Return the model that the path names: without a version its default one. Raises 404."""
    repository, path = get_state(request.scope).repository, request.path_params
    return repository.get(path["model"], path.get("version")).model


async def _read_control(request: Request) -> None:
    """Read the body of load or unload; raise 501 when it wants another model than what is in MODEL_DIR."""
    body = await receive_body(request.receive, get_state(request.scope).max_body_bytes)
    parameters = decode_body(CONTROL_DECODER, body or b"{}").parameters or {}
    if any(name == "config" or name.startswith("file:") for name in parameters):
        raise UnsupportedError("models come from MODEL_DIR, not with the request")


def _describe_tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.row_shape]}


def _configure_tensor(spec: TensorSpec) -> dict[str, object]:
    """Return a tensor's entry, whose `dims` leave out the rows and may not be empty."""
    data_type = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    entry: dict[str, object] = {"name": spec.name, "data_type": data_type, "dims": [spec.width]}
    return {**entry, "reshape": {"shape": []}} if spec.is_vector else entry


def _describe_missing(record: VersionRecord) -> dict[str, str]:
    reason = "unloaded" if record.trouble is None else record.trouble.detail
    name, version_ = record.printable
    return {"name": name, "version": version_, "state": "UNAVAILABLE", "reason": reason}


def _count_model(model: Model) -> dict[str, object]:
    labels = (model.name, model.version)
    rows = _read_sum(metrics.INFERENCE_BATCH_ROWS.labels(*labels))
    runs = _read_sum(metrics.INFERENCE_SECONDS.labels(*labels))
    success, fail = (
        _read_sum(metrics.OPEN_INFERENCE_SECONDS.labels(*labels, outcome)) for outcome in ("success", "fail")
    )
    return {
        "name": model.name,
        "version": model.version,
        "inference_count": int(rows["_sum"]),
        "execution_count": int(runs["_count"]),
        "inference_stats": {"success": _time(success), "fail": _time(fail), "compute_infer": _time(runs)},
        "batch_stats": [],
    }


def _read_sum(metric: Histogram | Summary) -> dict[str, float]:
    """Return a metric's samples by the end of their names: `_count` and `_sum`."""
    return {sample.name[sample.name.rindex("_") :]: sample.value for one in metric.collect() for sample in one.samples}


def _time(samples: Mapping[str, float]) -> dict[str, int]:
    return {"count": int(samples["_count"]), "ns": int(samples["_sum"] * 1e9)}


def _render_ready(answer: dict[str, object], state: State) -> Response:
    if find_refusals(state):
        return _json({**answer, "ready": False}, 503, UnavailableError.headers)
    return _json({**answer, "ready": True})


def _json(answer: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(answer), status, headers, media_type="application/json")


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

ROUTES = [
    Route("/v2", get_server),
    Route("/v2/health/live", get_live),
    Route("/v2/health/ready", get_ready),
    Route("/v2/models", list_models),
    Route("/v2/models/stats", get_statistics),
    *(Route(path, get_model) for path in MODEL_PATHS),
    *(Route(f"{path}/ready", get_model_ready) for path in MODEL_PATHS),
    *(Route(f"{path}/infer", infer, methods=["POST"]) for path in MODEL_PATHS),
    *(Route(f"{path}/config", get_config) for path in MODEL_PATHS),
    *(Route(f"{path}/stats", get_statistics) for path in MODEL_PATHS),
    Route("/v2/repository/index", get_index, methods=["POST"]),
    Route("/v2/repository/models/{model}/load", load_model, methods=["POST"]),
    Route("/v2/repository/models/{model}/unload", unload_model, methods=["POST"]),
    *(Route(path, refuse_extension, methods=["GET", "POST"]) for path in REFUSED_PATHS),
    *(
        Route(f"{path}/{name}", refuse_extension, methods=["POST"])
        for path in MODEL_PATHS
        for name in ("generate", "generate_stream")
    ),
]
"""Load and unload are protected as little as those under /models."""
