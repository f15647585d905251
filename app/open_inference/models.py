"""GET /v2/models and the paths below it, without inference: names, tensors, configuration, readiness."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.health import find_refusals
from app.errors import UnavailableError
from app.open_inference.rows import TensorSpec, list_inputs, list_outputs
from app.serving.model import Model
from app.state import get_state
from app.web.fields import MODEL_PATH, ModelName
from app.web.json import answer_json
from app.web.operation import Operation

PLATFORM = "onnxruntime_onnx"

TensorName = Annotated[str, Meta(description="The tensor's name", examples=["features"])]
Platform = Annotated[str, Meta(description="What the model runs on", examples=[PLATFORM])]


class ModelNames(msgspec.Struct):
    """The models that take requests."""

    models: Annotated[list[str], Meta(description="Their names", examples=[["car-loan"]])]


class TensorMetadata(msgspec.Struct):
    """An input or an output."""

    name: TensorName
    datatype: Annotated[str, Meta(description="The protocol's name of its elements' type", examples=["FP32"])]
    shape: Annotated[list[int], Meta(description="Its shape; -1: as many as there are rows", examples=[[-1, 5]])]


class ModelMetadata(msgspec.Struct):
    """A model's inputs and outputs."""

    name: ModelName
    versions: Annotated[list[str], Meta(description="The versions that take requests", examples=[["1"]])]
    platform: Platform
    inputs: Annotated[list[TensorMetadata], Meta(description="What it takes")]
    outputs: Annotated[list[TensorMetadata], Meta(description="What it answers")]


class Reshape(msgspec.Struct):
    """The shape of a row that is a single value."""

    shape: Annotated[list[int], Meta(description="The dimensions of a row: none", examples=[[]])]


class TensorConfig(msgspec.Struct):
    """An input or an output, as Triton configures it."""

    name: TensorName
    data_type: Annotated[str, Meta(description="Triton's name of its elements' type", examples=["TYPE_FP32"])]
    dims: Annotated[list[int], Meta(description="The dimensions of a row", examples=[[5]])]
    reshape: Annotated[
        Reshape | UnsetType, Meta(description="Only for a tensor that has one value per row and no second dimension")
    ] = UNSET


class VersionPolicy(msgspec.Struct):
    """Which versions are served."""

    all: Annotated[dict[str, Any], Meta(description="All versions are", examples=[{}])]


class ModelConfig(msgspec.Struct):
    """A model's configuration in Triton's form: the fields that apply here."""

    name: ModelName
    platform: Platform
    backend: Annotated[str, Meta(description="Triton's name of the library", examples=["onnxruntime"])]
    version_policy: Annotated[VersionPolicy, Meta(description="Which versions are served")]
    max_batch_size: Annotated[int, Meta(description="Rows that one request may have", examples=[10_000])]
    input: Annotated[list[TensorConfig], Meta(description="What it takes")]
    output: Annotated[list[TensorConfig], Meta(description="What it answers")]


class ModelReadiness(msgspec.Struct):
    """Whether a model takes requests."""

    name: ModelName
    ready: Annotated[bool, Meta(description="Whether requests should be sent to it now", examples=[True])]


@Operation(
    id="listModelNames",
    tag="open-inference",
    summary="The models that take requests",
    answers={200: [ModelNames]},
)
async def list_model_names(request: Request) -> Response:
    """Answer the names of the models that take requests; the protocol does not have this path."""
    names = {served.model.name: None for served in get_state(request.scope).repository.all()}
    return answer_json(ModelNames(list(names)))


@Operation(
    id="getModelMetadata",
    tag="open-inference",
    summary="A model's inputs and outputs",
    answers={200: [ModelMetadata]},
    problems=[404],
    path=MODEL_PATH,
)
async def get_metadata(request: Request) -> Response:
    """Answer the names, datatypes and shapes of the tensors that a model takes and answers.

    If the path names no version, the model's default version answers.
    """
    model = find_model(request)
    served = get_state(request.scope).repository.all()
    answer = ModelMetadata(
        name=model.name,
        versions=[one.model.version for one in served if one.model.name == model.name],
        platform=PLATFORM,
        inputs=[_describe_tensor(spec) for spec in list_inputs(model.signature)],
        outputs=[_describe_tensor(spec) for spec in list_outputs(model.signature)],
    )
    return answer_json(answer)


@Operation(
    id="isModelReady",
    tag="open-inference",
    summary="Whether a model takes requests",
    answers={200: [ModelReadiness], 503: [ModelReadiness]},
    problems=[404],
    path=MODEL_PATH,
)
async def get_model_readiness(request: Request) -> Response:
    """Answer 200 while this version takes requests, 503 while it cannot keep its promise, 404 when it is not there."""
    model = find_model(request)
    if find_refusals(get_state(request.scope)):
        return answer_json(ModelReadiness(model.name, ready=False), 503, UnavailableError.headers)
    return answer_json(ModelReadiness(model.name, ready=True))


@Operation(
    id="getModelConfig",
    tag="open-inference",
    summary="A model's configuration",
    answers={200: [ModelConfig]},
    problems=[404],
    path=MODEL_PATH,
)
async def get_config(request: Request) -> Response:
    """Answer a model's configuration in Triton's form: the fields that apply here."""
    model = find_model(request)
    answer = ModelConfig(
        name=model.name,
        platform=PLATFORM,
        backend="onnxruntime",
        version_policy=VersionPolicy({}),
        max_batch_size=min(get_state(request.scope).max_batch_rows, model.signature.max_rows),
        input=[_configure_tensor(spec) for spec in list_inputs(model.signature)],
        output=[_configure_tensor(spec) for spec in list_outputs(model.signature)],
    )
    return answer_json(answer)


def find_model(request: Request) -> Model:
    """Return the version that the path names, or the default version of its model. Raises 404."""
    repository, path = get_state(request.scope).repository, request.path_params
    return repository.get(path["model"], path.get("version")).model


def _describe_tensor(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(spec.name, spec.datatype, [-1, *spec.row_shape])


def _configure_tensor(spec: TensorSpec) -> TensorConfig:
    """Return the entry of a tensor; `dims` is without the rows and must not be empty."""
    data_type = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    return TensorConfig(spec.name, data_type, [spec.width], Reshape([]) if spec.is_vector else UNSET)
