"""Request bodies: check their size and type, decode them, and locate faults in them."""

import asyncio
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
from starlette.types import Receive, Scope

from app.errors import (
    BodyTooLargeError,
    Fault,
    InvalidRequestError,
    MalformedBodyError,
    UnsupportedMediaTypeError,
    invalid,
)
from app.serving.features import Value
from app.web.members import list_members

P = ParamSpec("P")
T = TypeVar("T")

Row = list[Value] | dict[str, Value]
"""One row as the client sent it: values in the model's order, or by feature name."""

LARGE_BODY_BYTES = 32 * 1024
"""Bodies of this size or more are decoded in a thread; smaller ones take well under a millisecond on the event loop."""


async def read_body(
    scope: Scope, receive: Receive, limit: int, media_types: Sequence[bytes] = (b"application/json",)
) -> bytes:
    """Read the whole body: at most `limit` bytes of one of `media_types`, not compressed."""
    check_headers(scope["headers"], limit, media_types)
    return await receive_body(receive, limit)


async def receive_body(receive: Receive, limit: int) -> bytes:
    """Receive the whole body, of any type and at most `limit` bytes."""
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MalformedBodyError("the client closed the connection before the end of the body")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise BodyTooLargeError(f"the body has more than the {limit} bytes allowed")
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def check_headers(
    headers: Iterable[tuple[bytes, bytes]], limit: int, media_types: Sequence[bytes] = (b"application/json",)
) -> None:
    """Raise 413 or 415 for a body that is too large or of a type that is not supported."""
    for name, value in headers:
        if name == b"content-type" and value not in media_types and _get_type(value) not in media_types:
            raise UnsupportedMediaTypeError(f"Content-Type must be {b' or '.join(media_types).decode()}")
        if name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMediaTypeError("Content-Encoding is not supported here: send the body uncompressed")
        if name == b"content-length" and (len(value) > 15 or int(value) > limit):
            raise BodyTooLargeError(f"the body has more than the {limit} bytes allowed")


def get_media_type(scope: Scope) -> bytes | None:
    """Return the Content-Type without its parameters, None when the client sent none."""
    return next((_get_type(value) for name, value in scope["headers"] if name == b"content-type"), None)


def _get_type(content_type: bytes) -> bytes:
    return content_type.partition(b";")[0].strip().lower()


async def run_sized(body: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work` on the event loop for a small body, in a thread for a large one: others need not wait."""
    if len(body) < LARGE_BODY_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def decode_body(
    decoder: msgspec.json.Decoder[T], body: bytes, prefix: str = "", where: str = "", example: str = ""
) -> T:
    """Decode strictly; raise 400 for invalid JSON, 422 with a pointer for JSON of another shape.

    For bodies of several documents, every pointer begins with `prefix` and every detail with `where`. `example` is a
    body that works, which is shown to a client that sends none, or a field that does not exist.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _check_syntax(body, where)  # msgspec reports a wrong shape before it has read the whole text
        raise _locate(error, decoder, body, prefix, where, example) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error, body, where, example) from error


def check_repeated_names(body: bytes) -> None:
    """Raise 422 when an object of this valid JSON has a name twice."""

    def check(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise invalid(Fault("", "repeated_name", "an object has the same name twice"))

    json.loads(body, object_pairs_hook=check)


def _check_syntax(body: bytes, where: str) -> None:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
        body.decode()  # msgspec does not check the UTF-8 of strings that it skips
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error, body, where) from error


def _malformed(error: Exception, body: bytes, where: str, example: str = "") -> MalformedBodyError:
    detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if not body.strip():
        return MalformedBodyError(f"{where}the body is empty{_show_example(example)}")
    if _has_no_number(body):
        detail += "; NaN and Infinity are no JSON numbers: a missing value is null, if the model takes missing values"
    return MalformedBodyError(f"{where}not valid JSON: {detail}")


NO_NUMBER = re.compile(r"[-+]?(nan|inf)", re.IGNORECASE)
"""How programs write it that allow more than JSON."""


def _has_no_number(body: bytes) -> bool:
    """Return whether a body is no JSON because of a NaN or an Infinity; Python's own parser says where."""

    def find_constant(name: str) -> None:
        raise json.JSONDecodeError("no number", name, 0)

    try:
        json.loads(body, parse_constant=find_constant, parse_int=float)  # int() refuses more than 4,300 digits
    except json.JSONDecodeError as error:
        return NO_NUMBER.match(error.doc, error.pos) is not None
    except (UnicodeDecodeError, RecursionError):
        return False
    return False


def _show_example(example: str) -> str:
    return f", for example {example}" if example else ""


def _locate(
    error: msgspec.ValidationError,
    decoder: msgspec.json.Decoder[Any],
    body: bytes,
    prefix: str,
    where: str,
    example: str,
) -> InvalidRequestError:
    """Turn msgspec's `Expected ... - at `$.instances[3][1]`` into a fault with a JSON pointer."""
    detail, _, path = str(error).partition(" - at ")
    steps: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", path):
        steps.append(name or (index if index == "..." else int(index)))
    if "..." in steps:
        steps = _name_hidden_key(steps, body)
    pointer, code = prefix + "".join(f"/{escape_step(step)}" for step in steps), _name_code(detail)
    if code == "unknown_field" and (names := list_members(decoder.type, steps)):
        detail = f"{detail}; allowed are {', '.join(names)}{'' if steps else _show_example(example)}"
    return invalid(Fault(pointer, code, where + explain_instant(detail)))


def explain_instant(detail: str) -> str:
    """Return what is wrong with a value; where it is a time, say how one is written."""
    is_time = detail.startswith(("Invalid RFC3339 encoded datetime", "Expected `datetime`"))
    return f"expected a time with its offset from UTC, for example {INSTANT}" if is_time else detail


INSTANT = "2026-01-31T12:00:00Z"


VALUE_DECODER = msgspec.json.Decoder[Value](Value)


def _name_hidden_key(steps: list[str | int], body: bytes) -> list[str | int]:
    """Replace the `...` that msgspec shows for an object's key by the first key whose value is not a `Value`."""
    container, at = msgspec.Raw(body), steps.index("...")
    try:
        for step in steps[:at]:
            kind: Any = dict[str, msgspec.Raw] if isinstance(step, str) else list[msgspec.Raw]
            container = msgspec.json.decode(container, type=kind)[step]
        members = msgspec.json.decode(container, type=dict[str, msgspec.Raw])
    except (
        msgspec.ValidationError,
        LookupError,
    ):  # a name occurs twice: the fault is in a value that the last one hides
        return steps[:at]
    for key, value in members.items():
        try:
            VALUE_DECODER.decode(value)
        except msgspec.ValidationError:
            return [*steps[:at], key]
    return steps[:at]


def escape_step(step: str | int) -> str:
    """Return a key or index as one step of a JSON pointer (RFC 6901)."""
    return str(step).replace("~", "~0").replace("/", "~1")


def _name_code(detail: str) -> str:
    codes = {
        "Number out of range": "out_of_range",
        "Integer value out of range": "out_of_range",
        "Object contains unknown field": "unknown_field",
        "Object missing required field": "missing_field",
        "Expected `str` of length": "out_of_range",
        "Expected": "wrong_type",
    }
    return next((code for start, code in codes.items() if detail.startswith(start)), "invalid")
