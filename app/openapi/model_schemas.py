"""What `POST /predict` takes, as JSON Schema: the members of its body, and the features of each loaded model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from app.api.predict import PredictBody
from app.serving.features import FEATURE_TEXT_LIMIT, FeatureKind, Value
from app.serving.model import Model
from app.serving.repository import ModelRepository
from app.serving.signature import Signature

Schema = dict[str, Any]

REF = "#/components/schemas/{name}"


class FeatureShape(NamedTuple):
    """What one feature may be; `low` and `high` bound numbers."""

    name: str
    kind: FeatureKind
    missing_allowed: bool
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Versions of a model that take the same features. `is_default`: no request needs to name one of them."""

    name: str
    versions: tuple[str, ...]
    features: tuple[FeatureShape, ...]
    example: tuple[Value, ...]
    classes: tuple[int | str, ...]
    is_default_model: bool
    has_default_version: bool


def describe_models(repository: ModelRepository) -> tuple[ModelShape, ...]:
    """Describe what is loaded, the default first; equal while nothing changes, and it keeps no model in memory."""
    groups: dict[tuple[str, tuple[FeatureShape, ...]], list[Model]] = {}
    for model in (served.model for served in repository.all()):
        groups.setdefault((model.name, describe_features(model.signature)), []).append(model)
    shapes = [
        ModelShape(
            name=name,
            versions=tuple(model.version for model in models),
            features=features,
            example=tuple(models[-1].example),
            classes=models[-1].signature.classes,
            is_default_model=name == repository.default_model,
            has_default_version=repository.get(name).model in models,
        )
        for (name, features), models in groups.items()
    ]
    return tuple(sorted(shapes, key=lambda one: (not one.is_default_model, not one.has_default_version)))


def describe_features(signature: Signature) -> tuple[FeatureShape, ...]:
    """Return what each feature of a row may be."""
    return tuple(
        FeatureShape(one.name, one.kind, one.missing_allowed, one.type.low, one.type.high) for one in signature.features
    )


NO_NUL = {"pattern": "^[^\\u0000]*$"}
"""PostgreSQL stores every text but one with this character."""


def forbid_nul(schema: Any) -> Any:
    """Return a schema of Structs whose texts are those that can be stored."""
    if isinstance(schema, list):
        return [forbid_nul(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    is_text = schema.get("type") == "string" and "format" not in schema
    return {name: forbid_nul(one) for name, one in schema.items()} | (NO_NUL if is_text else {})


def make_model_schemas(shapes: Sequence[ModelShape], max_rows: int) -> dict[str, Schema]:
    """Return the components for the body of /predict: `PredictRequest`, and for each model a row, one and many."""
    components: dict[str, Schema] = {}
    for shape in shapes:
        stem = f"{shape.name}.{shape.versions[-1]}"
        row = REF.format(name=f"{stem}.Row")
        components[f"{stem}.Row"] = _make_row_schema(shape.features)
        components[f"{stem}.One"] = _make_body_schema(shape, "features", {"$ref": row}, "external_ids")
        rows = {"type": "array", "items": {"$ref": row}, "minItems": 1, "maxItems": max_rows}
        components[f"{stem}.Many"] = _make_body_schema(shape, "instances", rows, "external_id")
    bodies = [{"$ref": REF.format(name=name)} for name in components if not name.endswith(".Row")]
    return {"PredictRequest": {"description": PredictBody.__doc__, "anyOf": bodies}, **components}


def make_examples(shape: ModelShape) -> dict[str, Schema]:
    """Return requests that work, by name."""
    model = {} if shape.is_default_model else {"model": shape.name}
    chosen = model if shape.has_default_version else {**model, "version": shape.versions[-1]}
    row, named = list(shape.example), dict(zip([one.name for one in shape.features], shape.example, strict=True))
    examples: dict[str, tuple[str, Schema]] = {
        "by name": ("One row, its values by name", {"features": named, "external_id": "order-1"}),
        "by order": ("One row, its values in the model's order", {"features": row}),
        "many": ("Many rows", {"instances": [row, named], "external_ids": ["order-2", None]}),
    }
    stem = f"{shape.name} {shape.versions[-1]}"
    return {
        f"{stem}, {name}": {"summary": f"{summary}: {stem}", "value": {**value, **chosen}}
        for name, (summary, value) in examples.items()
    }


def _make_row_schema(features: Sequence[FeatureShape]) -> Schema:
    schemas = [_make_feature_schema(feature) for feature in features]
    order = ", ".join(feature.name for feature in features)
    length = {"minItems": len(schemas), "maxItems": len(schemas)}
    alike = all(schema == schemas[0] for schema in schemas)
    items: Schema = {"items": schemas[0]} if alike else {"prefixItems": schemas, "items": False}
    by_name = {feature.name: schema for feature, schema in zip(features, schemas, strict=True)}
    return {
        "anyOf": [
            {
                "title": "By name",
                "type": "object",
                "properties": by_name,
                "required": list(by_name),
                "additionalProperties": False,
            },
            {"title": "In order", "description": f"In this order: {order}", "type": "array", **items, **length},
        ]
    }


def _make_feature_schema(feature: FeatureShape) -> Schema:
    if feature.kind == "text":
        return {"type": "string", "maxLength": FEATURE_TEXT_LIMIT, **NO_NUL}
    if feature.kind == "boolean":
        return {"type": "boolean"}
    bounds = {"minimum": feature.low, "maximum": feature.high}
    return {"type": [feature.kind, "null"] if feature.missing_allowed else feature.kind, **bounds}


def _make_body_schema(shape: ModelShape, rows_name: str, rows: Schema, not_here: str) -> Schema:
    """Return the schema of a body with rows of this model; `not_here` is the member that goes with the other kind."""
    schema = msgspec.json.schema(PredictBody)["$defs"]["PredictBody"]
    members = forbid_nul(schema["properties"])
    properties = {
        rows_name: rows,
        **{name: members[name] for name in ("external_id", "external_ids")},
        not_here: {"type": "null"},
        "model": {"enum": [shape.name, *([None] if shape.is_default_model else [])]},
        "version": {"enum": list_spellings(shape)},
    }
    needed = [rows_name]
    needed += [] if shape.is_default_model else ["model"]
    needed += [] if shape.has_default_version else ["version"]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def list_spellings(shape: ModelShape) -> list[str | int | None]:
    """Return every value of `version` that asks for one of these: a number may be one, null asks for the default."""
    numbers = [int(version) for version in shape.versions if version.isdecimal() and str(int(version)) == version]
    return [*shape.versions, *numbers, *([None] if shape.has_default_version else [])]
