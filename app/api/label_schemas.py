"""JSON Schema of what `POST /labels` takes: one label, many, or one per line. Examples use a class of the model."""

import msgspec

from app.prediction_log.record import TEXT_LIMIT
from app.web.deployment import Deployment
from app.web.operation import Body, Example, Schema
from app.web.schemas import NO_NUL, forbid_nul, make_components, refer


def describe_label_bodies(label: type[msgspec.Struct], deployment: Deployment) -> list[Body]:
    """Return the bodies; their examples label the rows of the examples of /predict."""
    one, other = ({"external_id": f"order-{number}", "label": deployment.models[0].classes[0]} for number in (1, 2))
    lines = b"".join(msgspec.json.encode(line) + b"\n" for line in (one, other)).decode()
    return [
        Body(
            refer("LabelRequest"),
            {"one": Example("One label", one), "many": Example("Many labels", {"labels": [one, other]})},
            components=_make_label_schemas(label, deployment.max_rows),
        ),
        Body(
            {"type": "string", "description": "One `Label` per line"},
            {"lines": Example("One label per line", lines)},
            "application/x-ndjson",
        ),
    ]


def _make_label_schemas(struct: type[msgspec.Struct], max_rows: int) -> dict[str, Schema]:
    """Return the components: `LabelRequest`, one label, and many."""
    label = forbid_nul(make_components([struct])[1][struct.__name__])
    keys = ("prediction_id", "external_id")
    words = {name: label["properties"]["label"][name] for name in ("description", "examples")}
    label["properties"]["label"] = {
        **words,
        "anyOf": [
            {"type": "string", "maxLength": TEXT_LIMIT, **NO_NUL},
            {"type": "integer", "minimum": -(2**63) + 1, "maximum": 2**63 - 1},
            {"type": "null"},
        ],
    }
    label |= {"title": "Label", "required": ["label"]}
    label["oneOf"] = [{"required": [key], "properties": {key: {"type": "string"}}} for key in keys]
    description = "The labels, each as it would be sent alone"
    labels = {"description": description, "type": "array", "items": refer("Label"), "minItems": 1, "maxItems": max_rows}
    nothing = {
        name: {"description": "Give this in each label", "type": "null", "examples": [None]}
        for name in (*keys, "observed_at")
    }
    many: Schema = {"title": "Labels", "description": "Many labels, all taken or none", "type": "object"}
    many |= {"properties": {"labels": labels, **nothing}, "required": ["labels"], "additionalProperties": False}
    return {
        "LabelRequest": {"description": "One label, or many", "anyOf": [refer("Label"), refer("Labels")]},
        "Label": label,
        "Labels": many,
    }
