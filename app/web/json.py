"""Answers in JSON: one encoder for every Struct that a handler returns."""

from collections.abc import Mapping, Sequence

import msgspec
from starlette.responses import Response

JSON = "application/json"


def answer_json(
    answer: msgspec.Struct | Sequence[msgspec.Struct],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = JSON,
) -> Response:
    """Return a response whose body is the answer in JSON."""
    return Response(msgspec.json.encode(answer), status, headers, media_type)
