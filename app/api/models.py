"""GET /models and /models/{model}/versions/{version}: what is loaded."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.serving.model import Model
from app.serving.signature import decision_rule
from app.state import get_state


async def list_models(request: Request) -> Response:
    """Answer every loaded version."""
    repository = get_state(request.scope).repository
    answer = {
        "default_model": repository.default_model,
        "models": [render_model(model) for model in repository.all()],
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def get_model(request: Request) -> Response:
    """Answer one loaded version, 404 when it is not."""
    model = get_state(request.scope).repository.get(request.path_params["model"], request.path_params["version"])
    return Response(msgspec.json.encode(render_model(model)), media_type="application/json")


def render_model(model: Model) -> dict[str, object]:
    """Return what the server knows of a model as JSON."""
    signature = model.signature
    return {
        "name": model.name,
        "version": model.version,
        "sha256": model.sha256,
        "loaded_at": model.loaded_at,
        "inputs": signature.describe_features(),
        "missing_values": "allowed" if signature.missing_allowed else "refused",
        "classes": signature.classes,
        "positive_class": None if signature.positive_index is None else signature.classes[signature.positive_index],
        "decision": decision_rule(signature),
        "decision_threshold": signature.decision_threshold,
        "training_f1": signature.training_f1,
    }
