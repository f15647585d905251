"""GET /models and /models/{model}/versions/{version}: what is served, and what is not for which reason."""

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from app.serving.repository import Served
from app.serving.signature import decision_rule
from app.state import State, get_state


async def list_models(request: Request) -> Response:
    """Answer every served version, and those that are not: unloaded by somebody, or refused."""
    state = get_state(request.scope)
    repository = state.repository
    answer = {
        "default_model": repository.default_model,
        "models": [render_served(served, state) for served in repository.all()],
        "not_serving": [render_missing(key, state) for key in list_missing(state)],
        "pins": repository.pins,
    }
    return Response(msgspec.json.encode(answer), media_type="application/json")


async def get_model(request: Request) -> Response:
    """Answer one version, 404 when nothing is known of it."""
    state, key = get_state(request.scope), (request.path_params["model"], request.path_params["version"])
    if state.repository.find(*key) is None and (key in state.reloader.unloaded or key in state.reloader.troubles):
        answer = render_missing(key, state)
    else:
        answer = render_served(state.repository.get(*key), state)
    return Response(msgspec.json.encode(answer), media_type="application/json")


def list_missing(state: State) -> list[tuple[str, str]]:
    """Return the names and versions that somebody has unloaded, or that were refused."""
    known = {*state.reloader.troubles, *state.reloader.unloaded}
    return sorted(key for key in known if state.repository.find(*key) is None)


def render_served(served: Served, state: State) -> dict[str, object]:
    """Return what the server knows of a served version as JSON."""
    model, signature = served.model, served.model.signature
    return {
        "name": model.name,
        "version": model.version,
        "state": "serving",
        "default": state.repository.find_default(model.name) is served,
        "pinned": state.repository.pins.get(model.name) == model.version,
        "trouble": render_trouble((model.name, model.version), state),
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


def render_missing(key: tuple[str, str], state: State) -> dict[str, object]:
    """Return why a version is not served as JSON."""
    name, version = (ascii(part)[1:-1] for part in key)
    is_unloaded = key in state.reloader.unloaded
    return {
        "name": name,
        "version": version,
        "state": "unloaded" if is_unloaded else "refused",
        "default": False,
        "pinned": state.repository.pins.get(name) == version,
        "trouble": render_trouble(key, state),
    }


def render_trouble(key: tuple[str, str], state: State) -> dict[str, object] | None:
    """Return what is wrong with a version as JSON."""
    trouble = state.reloader.troubles.get(key)
    return None if trouble is None else {"code": trouble.code, "detail": trouble.detail, "since": trouble.since}
