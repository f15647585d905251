"""GET /models and /models/{model}/versions/{version}: what is served, and what is not for which reason."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.serving.repository import ServedModel, VersionRecord
from app.serving.signature import decision_rule
from app.state import State, get_state


async def list_models(request: Request) -> Response:
    """Answer every served version, and those that are not: unloaded by somebody, or refused."""
    state = get_state(request.scope)
    repository = state.repository
    answer = {
        "default_model": repository.default_model,
        "models": [render_served(served, state) for served in repository.all()],
        "not_serving": [render_missing(record) for record in repository.records() if record.is_missing],
        "pins": repository.pins,
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def get_model(request: Request) -> Response:
    """Answer one version, 404 when nothing is known of it."""
    state, key = get_state(request.scope), (request.path_params["model"], request.path_params["version"])
    record = state.repository.find_record(*key)
    if record is not None and record.is_missing:
        answer = render_missing(record)
    else:
        answer = render_served(state.repository.get(*key), state)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def render_served(served: ServedModel, state: State) -> dict[str, object]:
    """Return what the server knows of a served version as JSON."""
    model, signature = served.model, served.model.signature
    record = state.repository.find_record(model.name, model.version)
    return {
        "name": model.name,
        "version": model.version,
        "state": "serving",
        "default": state.repository.find_default(model.name) is served,
        "pinned": record is not None and record.is_pinned,
        "trouble": None if record is None else record.trouble,
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


def render_missing(record: VersionRecord) -> dict[str, object]:
    """Return why a version is not served as JSON."""
    name, version = record.printable
    return {
        "name": name,
        "version": version,
        "state": "unloaded" if record.is_unloaded else "refused",
        "default": False,
        "pinned": record.is_pinned,
        "trouble": record.trouble,
    }
