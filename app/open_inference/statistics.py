"""GET /v2/models/stats and .../stats: what was counted since the start, in the form of Triton's statistics."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from prometheus_client import Histogram, Summary
from starlette.requests import Request
from starlette.responses import Response

from app import metrics
from app.open_inference.models import find_model
from app.serving.model import Model
from app.state import get_state
from app.web.fields import MODEL_PATH, ModelName, ModelVersion
from app.web.json import answer_json
from app.web.operation import Operation


class Duration(msgspec.Struct):
    """How often something was done, and how long it took."""

    count: Annotated[int, Meta(description="How often", examples=[120])]
    ns: Annotated[int, Meta(description="How long altogether, in nanoseconds", examples=[48_000_000])]


class InferenceStatistics(msgspec.Struct):
    """Durations since the start."""

    success: Annotated[Duration, Meta(description="Requests of this protocol that were answered 200")]
    fail: Annotated[Duration, Meta(description="Requests of this protocol that were answered an error")]
    compute_infer: Annotated[Duration, Meta(description="Runs of the model, for requests of /predict, too")]


class VersionStatistics(msgspec.Struct):
    """What was counted of one version since the start."""

    name: ModelName
    version: ModelVersion
    inference_count: Annotated[int, Meta(description="Rows that were scored", examples=[480])]
    execution_count: Annotated[int, Meta(description="Runs of the model", examples=[120])]
    inference_stats: Annotated[InferenceStatistics, Meta(description="Durations")]
    batch_stats: Annotated[list[Any], Meta(description="Always empty: batches are not counted by size", examples=[[]])]


class Statistics(msgspec.Struct):
    """What was counted since the start."""

    model_stats: Annotated[list[VersionStatistics], Meta(description="One for each version")]


@Operation(
    id="getStatistics",
    tag="open-inference",
    summary="What was counted since the start",
    answers={200: [Statistics]},
    problems=[404],
    path=MODEL_PATH,
)
async def get_statistics(request: Request) -> Response:
    """Answer what this process counted since its start: for one version, for all of one model, or for all models."""
    path, served = request.path_params, get_state(request.scope).repository.all()
    if "version" in path:
        models = [find_model(request)]
    elif "model" in path:
        find_model(request)
        models = [one.model for one in served if one.model.name == path["model"]]
    else:
        models = [one.model for one in served]
    return answer_json(Statistics([_count_model(model) for model in models]))


def _count_model(model: Model) -> VersionStatistics:
    labels = (model.name, model.version)
    rows = _read_sum(metrics.INFERENCE_BATCH_ROWS.labels(*labels))
    runs = _read_sum(metrics.INFERENCE_SECONDS.labels(*labels))
    success, fail = (
        _read_sum(metrics.OPEN_INFERENCE_SECONDS.labels(*labels, outcome)) for outcome in ("success", "fail")
    )
    return VersionStatistics(
        name=model.name,
        version=model.version,
        inference_count=int(rows["_sum"]),
        execution_count=int(runs["_count"]),
        inference_stats=InferenceStatistics(*map(_make_duration, (success, fail, runs))),
        batch_stats=[],
    )


def _read_sum(metric: Histogram | Summary) -> dict[str, float]:
    """Return a metric's samples by the end of their names: `_count` and `_sum`."""
    return {sample.name[sample.name.rindex("_") :]: sample.value for one in metric.collect() for sample in one.samples}


def _make_duration(samples: dict[str, float]) -> Duration:
    return Duration(int(samples["_count"]), int(samples["_sum"] * 1e9))
