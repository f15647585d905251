"""What schemathesis has to know of NDJSON, which the document describes as a text."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def serialize(context: schemathesis.SerializationContext, value: object) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
