"""JSON Schema of what `POST /predict` takes: the members of its body, and the features of each loaded model."""

from collections.abc import Sequence

import msgspec

from app.serving.features import FEATURE_TEXT_LIMIT, TOKEN_LIMIT
from app.web.deployment import Deployment, FeatureShape, ModelShape
from app.web.operation import Body, Example, Schema
from app.web.schemas import NO_NUL, forbid_nul, make_properties, refer


def describe_predict_body(struct: type[msgspec.Struct], deployment: Deployment) -> list[Body]:
    """Return the body with an example of each kind for each model."""
    examples = {name: example for shape in deployment.models for name, example in _make_examples(shape).items()}
    return [Body(refer("PredictRequest"), examples, components=_make_model_schemas(struct, deployment))]


def _make_examples(shape: ModelShape) -> dict[str, Example]:
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
        f"{stem}, {name}": Example(f"{summary}: {stem}", {**value, **chosen})
        for name, (summary, value) in examples.items()
    }


def _make_model_schemas(struct: type[msgspec.Struct], deployment: Deployment) -> dict[str, Schema]:
    """Return the components: `PredictRequest`, and for each model a row, a body with one row, and one with many."""
    members = forbid_nul(make_properties(struct))
    components: dict[str, Schema] = {}
    for shape in deployment.models:
        stem = f"{shape.name}.{shape.versions[-1]}"
        row = refer(f"{stem}.Row")
        components[f"{stem}.Row"] = _make_row_schema(shape)
        components[f"{stem}.One"] = _make_body_schema(shape, members, "features", row)
        most = min(deployment.max_rows, shape.max_rows)
        rows = {"type": "array", "items": row, "minItems": 1, "maxItems": most}
        components[f"{stem}.Many"] = _make_body_schema(shape, members, "instances", rows)
    bodies = [refer(name) for name in components if not name.endswith(".Row")]
    return {"PredictRequest": {"description": struct.__doc__, "anyOf": bodies}, **components}


def _make_row_schema(shape: ModelShape) -> Schema:
    schemas = [_make_feature_schema(feature) for feature in shape.features]
    order = ", ".join(feature.name for feature in shape.features)
    length = {"minItems": len(schemas), "maxItems": len(schemas)}
    alike = all(schema == schemas[0] for schema in schemas)
    items: Schema = {"items": schemas[0]} if alike else {"prefixItems": schemas, "items": False}
    by_name = {
        feature.name: {"description": f"A feature of {shape.name}", **schema, "examples": [value]}
        for feature, schema, value in zip(shape.features, schemas, shape.example, strict=True)
    }
    return {
        "description": f"One row for {shape.name}",
        "anyOf": [
            {
                "title": "By name",
                "type": "object",
                "properties": by_name,
                "required": list(by_name),
                "additionalProperties": False,
            },
            {"title": "In order", "description": f"In this order: {order}", "type": "array", **items, **length},
        ],
    }


def _make_feature_schema(feature: FeatureShape) -> Schema:
    if feature.kind == "text":
        text = {"maxLength": FEATURE_TEXT_LIMIT, **NO_NUL}
        return {"type": ["string", "null"] if feature.missing_allowed else "string", **text}
    if feature.kind == "integers":
        tokens = {"type": "integer", "minimum": feature.low, "maximum": feature.high}
        return {"type": "array", "items": tokens, "minItems": 1, "maxItems": TOKEN_LIMIT}
    if feature.kind == "boolean":
        return {"type": "boolean"}
    bounds = {"minimum": feature.low, "maximum": feature.high}
    return {"type": [feature.kind, "null"] if feature.missing_allowed else feature.kind, **bounds}


def _make_body_schema(shape: ModelShape, members: dict[str, Schema], rows_name: str, rows: Schema) -> Schema:
    """Return the schema of a body with rows of this model, under `features` or `instances`."""
    not_here = "external_ids" if rows_name == "features" else "external_id"
    named = [name for name in ("external_id", "external_ids") if name != not_here]
    properties = {
        rows_name: {"description": members[rows_name]["description"], **rows},
        **{name: members[name] for name in named},
        not_here: {"description": f"Not allowed with {rows_name}", "type": "null", "examples": [None]},
        "model": {
            **_describe(members["model"], shape.name),
            "enum": [shape.name, *([None] if shape.is_default_model else [])],
        },
        "version": {**_describe(members["version"], shape.versions[-1]), "enum": _list_spellings(shape)},
    }
    needed = [rows_name]
    needed += [] if shape.is_default_model else ["model"]
    needed += [] if shape.has_default_version else ["version"]
    versions = ", ".join(shape.versions)
    return {
        "description": f"{'One row' if rows_name == 'features' else 'Many rows'} for {shape.name}, version {versions}",
        "type": "object",
        "properties": properties,
        "required": needed,
        "additionalProperties": False,
    }


def _describe(member: Schema, example: str) -> Schema:
    return {"description": member["description"], "examples": [example]}


def _list_spellings(shape: ModelShape) -> Sequence[str | int | None]:
    """Return every value of `version` that selects one of these: also numbers, and null for the default version."""
    numbers = [int(version) for version in shape.versions if version.isdecimal() and str(int(version)) == version]
    return [*shape.versions, *numbers, *([None] if shape.has_default_version else [])]
