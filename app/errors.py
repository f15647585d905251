"""The errors that become answers or stop the start, and the reasons that /health shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """A problem that lasts: a code for programs, a text for the operator, and when it began."""

    code: Annotated[str, Meta(description="What is wrong, for programs", examples=["database_unprepared"])]
    detail: Annotated[
        str,
        Meta(
            description="What is wrong, for the operator", examples=["PostgreSQL has not been reached since the start"]
        ),
    ]
    since: Annotated[datetime, Meta(description="When it was noticed first", examples=["2026-01-01T00:00:00Z"])] = (
        msgspec.field(default_factory=lambda: datetime.now(UTC))
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a request: where it is, a code for programs, and a text for people."""

    pointer: Annotated[
        str,
        Meta(
            description="Where: a JSON pointer into the body, or `?name` for a query parameter",
            examples=["/features/loan_length"],
        ),
    ]
    code: Annotated[str, Meta(description="What is wrong, for programs", examples=["wrong_type"])]
    detail: Annotated[str, Meta(description="What is wrong, for people", examples=["expected number"])]


class ScorekeeperError(Exception):
    """Root of this service's errors. `status` is the HTTP status of the answer, the message is its detail."""

    status = 500
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(detail)
        self.faults = faults


class StartupError(ScorekeeperError):
    """The server cannot start; the message is the one line that the operator sees."""


class MalformedBodyError(ScorekeeperError):
    """The body cannot be parsed."""

    status = 400


class NotFoundError(ScorekeeperError):
    """What the request asks for does not exist."""

    status = 404


class ConflictError(ScorekeeperError):
    """The request conflicts with the current state."""

    status = 409


class BodyTooLargeError(ScorekeeperError):
    """The body is larger than allowed."""

    status = 413


class UnsupportedMediaTypeError(ScorekeeperError):
    """The body has a type or encoding that is not supported."""

    status = 415


class InvalidRequestError(ScorekeeperError):
    """The request was parsed but is unacceptable; `faults` say where and why."""

    status = 422


class UnavailableError(ScorekeeperError):
    """The server cannot serve the request now and promises nothing; the client may try again."""

    status = 503
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class ModelOutputError(UnavailableError):
    """The model's output for some rows cannot be answered: the model is the cause, not the request."""

    def __init__(self, reason: Reason, pointers: Sequence[str] = ()) -> None:
        super().__init__(reason.detail, [Fault(pointer, reason.code, reason.detail) for pointer in pointers])
        self.reason = reason


def invalid(*faults: Fault) -> InvalidRequestError:
    """Return a 422 error with these faults; its detail names the first."""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidRequestError(f"{faults[0].pointer or 'the body'}: {faults[0].detail}{more}", faults)


def keep_since(reason: Reason, before: Reason | None) -> Reason:
    """Return `reason`, with the `since` of `before` if both have the same code."""
    if before is None or before.code != reason.code:
        return reason
    return msgspec.structs.replace(reason, since=before.since)
