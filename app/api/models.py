"""/models: which versions are served, why others are not, and operator requests to change that."""

from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from app.api.model_answers import (
    DefaultVersion,
    InputFeature,
    MissingVersion,
    ModelList,
    ServedVersion,
    UnloadedVersion,
)
from app.serving.repository import ServedModel, VersionRecord
from app.serving.signature import decision_rule
from app.state import State, get_state
from app.web.body import decode_body, read_body
from app.web.deployment import Deployment
from app.web.fields import MODEL_PATH
from app.web.json import answer_json
from app.web.operation import Body, Example, Operation

MAX_BODY_BYTES = 1024


@Operation(id="listModels", tag="models", summary="Every version, served or not", answers={200: [ModelList]})
async def list_versions(request: Request) -> Response:
    """Answer every known version: served, unloaded by the operator, or refused."""
    state = get_state(request.scope)
    served = [_describe_served(one, state) for one in state.repository.all()]
    missing = [_describe_missing(record) for record in state.repository.records() if record.is_missing]
    return answer_json(ModelList(state.repository.default_model, served, missing, state.repository.pins))


@Operation(
    id="getVersion",
    tag="models",
    summary="One version",
    answers={200: [ServedVersion, MissingVersion]},
    problems=[404],
    path=MODEL_PATH,
)
async def get_version(request: Request) -> Response:
    """Answer one version, served or not; 404 when nothing is known of it."""
    state, key = get_state(request.scope), (request.path_params["model"], request.path_params["version"])
    record = state.repository.find_record(*key)
    if record is not None and record.is_missing:
        return answer_json(_describe_missing(record))
    return answer_json(_describe_served(state.repository.get(*key), state))


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version to load."""

    version: Annotated[
        str | int | None, Meta(description="The version's name; null: the highest in MODEL_DIR", examples=["1"])
    ] = None


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version to unload."""

    version: Annotated[str | int, Meta(description="The version's name", examples=["1"])]


class PinBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version is the default from now on."""

    version: Annotated[str | int | None, Meta(description="The version's name; null: the highest", examples=["1"])]


LOAD_DECODER = msgspec.json.Decoder(LoadBody)
UNLOAD_DECODER = msgspec.json.Decoder(UnloadBody)
PIN_DECODER = msgspec.json.Decoder(PinBody)

VERSION_EXAMPLE = '{"version": "2"}'
PIN_EXAMPLE = f'{VERSION_EXAMPLE} to pin it, or {{"version": null}} to remove the pin'


def _list_load_bodies(deployment: Deployment) -> list[Body]:
    """Return the bodies that load a version."""
    version = deployment.models[0].versions[-1]
    examples = {
        "version": Example("This version", {"version": version}),
        "highest": Example("The highest version in MODEL_DIR", {}),
    }
    return [Body(LoadBody, examples)]


@Operation(
    id="loadVersion",
    tag="models",
    summary="Serve a version from its file as it is now",
    answers={200: [ServedVersion]},
    problems=[404, 409, 413, 415, 422],
    path=MODEL_PATH,
    bodies=_list_load_bodies,
)
async def load_version(request: Request) -> Response:
    """Answer when the version takes requests; 404, 409 or 422 say why it does not.

    Without a version, the highest in MODEL_DIR is loaded.
    """
    body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    asked = decode_body(LOAD_DECODER, body or b"{}", example=VERSION_EXAMPLE).version
    state = get_state(request.scope)
    served = await state.reloader.load(request.path_params["model"], None if asked is None else str(asked))
    return answer_json(_describe_served(served, state))


def _list_unload_bodies(deployment: Deployment) -> list[Body]:
    """Return the body that unloads the lowest version of the default model: trying this does the least harm."""
    versions = [shape.versions[0] for shape in deployment.models if shape.name == deployment.models[0].name]
    return [Body(UnloadBody, {"version": Example("This version", {"version": versions[-1]})})]


@Operation(
    id="unloadVersion",
    tag="models",
    summary="Unload a version, so that it takes no more requests",
    answers={200: [UnloadedVersion]},
    problems=[404, 409, 413, 415, 422],
    path=MODEL_PATH,
    bodies=_list_unload_bodies,
)
async def unload_version(request: Request) -> Response:
    """Answer when the version takes no more requests, until it is loaded or the server starts again.

    Requests that it has taken are finished. 409: it is pinned, or the default model has no other version.
    """
    body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    name, version = (
        request.path_params["model"],
        str(decode_body(UNLOAD_DECODER, body, example=VERSION_EXAMPLE).version),
    )
    await get_state(request.scope).reloader.unload(name, version)
    return answer_json(UnloadedVersion(name, version))


def _list_pin_bodies(deployment: Deployment) -> list[Body]:
    """Return the bodies that pin a version, and that remove the pin."""
    version = deployment.models[0].versions[-1]
    examples = {
        "version": Example("This version", {"version": version}),
        "highest": Example("The highest version again", {"version": None}),
    }
    return [Body(PinBody, examples)]


@Operation(
    id="pinVersion",
    tag="models",
    summary="Make a version the default, also after a restart",
    answers={200: [DefaultVersion]},
    problems=[404, 413, 415, 422],
    path=MODEL_PATH,
    bodies=_list_pin_bodies,
)
async def pin_version(request: Request) -> Response:
    """Answer which version is the model's default now, and will be after a restart; null makes it the highest again."""
    body = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
    name, asked = request.path_params["model"], decode_body(PIN_DECODER, body, example=PIN_EXAMPLE).version
    state = get_state(request.scope)
    await state.reloader.pin(name, None if asked is None else str(asked))
    default = state.repository.find_default(name)
    version = None if default is None else default.model.version
    return answer_json(DefaultVersion(name, state.repository.pins.get(name), version))


def _describe_served(served: ServedModel, state: State) -> ServedVersion:
    """Return what the server knows of a served version."""
    model, signature = served.model, served.model.signature
    record = state.repository.find_record(model.name, model.version)
    return ServedVersion(
        name=model.name,
        version=model.version,
        state="serving",
        default=state.repository.find_default(model.name) is served,
        pinned=record is not None and record.is_pinned,
        trouble=next(iter(record.list_troubles()), None) if record is not None else None,
        sha256=model.sha256,
        loaded_at=model.loaded_at,
        inputs=[InputFeature(feature.name, feature.kind) for feature in signature.features],
        missing_values="allowed" if signature.missing_allowed else "refused",
        classes=signature.classes,
        positive_class=None if signature.positive_index is None else signature.classes[signature.positive_index],
        decision=decision_rule(signature),
        label_doubt=signature.label_doubt,
        decision_threshold=signature.decision_threshold,
        batching="on" if signature.batching_doubt is None else "off",
        batching_doubt=signature.batching_doubt,
        training_f1=signature.training_f1,
    )


def _describe_missing(record: VersionRecord) -> MissingVersion:
    """Return why a version is not served."""
    name, version = record.printable
    return MissingVersion(
        name=name,
        version=version,
        state="unloaded" if record.is_unloaded else "refused",
        default=False,
        pinned=record.is_pinned,
        trouble=record.trouble,
    )
