"""JSON Schema of Structs and of single types, as /openapi.json has it."""

from collections.abc import Iterable
from typing import Any

import msgspec

from app.web.operation import Schema

REF = "#/components/schemas/{name}"

NO_NUL = {"pattern": "^[^\\u0000]*$"}
"""PostgreSQL cannot store a text with this character."""


def refer(name: str) -> Schema:
    """Return the reference to a component."""
    return {"$ref": REF.format(name=name)}


def make_components(types: Iterable[Any]) -> tuple[list[Schema], dict[str, Schema]]:
    """Return the schema of each type, and of each Struct in them by name."""
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    return [_tidy(schema) for schema in schemas], {name: _tidy(schema) for name, schema in components.items()}


def make_properties(struct: type[msgspec.Struct]) -> dict[str, Schema]:
    """Return the schema of each field of a Struct by its name in JSON."""
    _, components = make_components([struct])
    properties: dict[str, Schema] = components[struct.__name__]["properties"]
    return properties


def forbid_nul(schema: Any) -> Any:
    """Return the schema with NO_NUL for each of its texts."""
    if isinstance(schema, list):
        return [forbid_nul(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    is_text = schema.get("type") == "string" and "format" not in schema
    return {name: forbid_nul(one) for name, one in schema.items()} | (NO_NUL if is_text else {})


def _tidy(schema: Schema) -> Schema:
    """Return the schema with descriptions and examples at the properties; msgspec puts them into an alternative."""
    properties = {name: _lift(one) for name, one in schema.get("properties", {}).items()}
    return {**_lift(schema), **({"properties": properties} if properties else {})}


def _lift(schema: Schema) -> Schema:
    words: Schema = {}
    alternatives = []
    for one in schema.get("anyOf", ()):
        words |= {name: one[name] for name in ("description", "examples") if name in one}
        alternatives.append({name: value for name, value in one.items() if name not in ("description", "examples")})
    return {**words, **schema, "anyOf": alternatives} if alternatives else schema


def make_example(schema: Schema, components: dict[str, Schema]) -> Any:
    """Return a value of a schema from the examples of its fields, without optional fields that have none."""
    if "$ref" in schema:
        return make_example(components[schema["$ref"].rpartition("/")[2]], components)
    if "examples" in schema:
        return schema["examples"][0]
    if "properties" in schema:
        shown = {name for name, one in schema["properties"].items() if "examples" in one} | {*schema["required"]}
        return {name: make_example(one, components) for name, one in schema["properties"].items() if name in shown}
    if schema.get("type") == "array":
        return [make_example(schema["items"], components)]
    if "anyOf" in schema:
        return make_example(schema["anyOf"][0], components)
    return None
