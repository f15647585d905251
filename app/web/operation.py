"""Declare above a handler what its operation takes and answers; /openapi.json is generated from this."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from app.web.deployment import Deployment
from app.web.json import JSON

Schema = dict[str, Any]

Tag = Literal["predictions", "labels", "quality", "models", "operations", "open-inference", "unsupported"]

Content = type[msgspec.Struct] | type[list[Any]] | str
"""What an answer holds: a Struct in JSON, a list of Structs in JSON, or content of this media type."""

Handler = TypeVar("Handler", bound=Callable[..., Any])

ATTRIBUTE = "operation"
"""The attribute of a handler that holds its operation."""


class Example(NamedTuple):
    """A body that works, with a summary of a few words."""

    summary: str
    value: Any


@dataclass(frozen=True, slots=True)
class Body:
    """What a request may carry in one media type; `components` are schemas that `shape` refers to by name."""

    shape: type[msgspec.Struct] | Schema
    examples: Mapping[str, Example]
    media_type: str = JSON
    components: Mapping[str, Schema] = field(default_factory=dict)

    @property
    def is_required(self) -> bool:
        """Whether a request must have a body: False when no field of the Struct is required."""
        return isinstance(self.shape, dict) or any(one.required for one in msgspec.structs.fields(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation, as a decorator of its handler, whose docstring is the description.

    `answers` has what the answer of each status may hold. `problems` are the statuses of its errors, beside those that
    any request may get. `path` has the type of each path parameter, `query` is the Struct of the query. What depends on
    the loaded models is a function: `bodies`, and `examples`, whose values replace the examples of parameters by name.
    """

    id: str
    tag: Tag
    summary: str
    answers: Mapping[int, Sequence[Content]]
    problems: Sequence[int] = ()
    path: Mapping[str, Any] = field(default_factory=dict)
    query: type[msgspec.Struct] | None = None
    bodies: Callable[[Deployment], Sequence[Body]] | None = None
    examples: Callable[[Deployment], Mapping[str, object]] = Deployment.examples

    def __call__(self, handler: Handler) -> Handler:
        """Declare this as the operation of a handler."""
        vars(handler)[ATTRIBUTE] = self
        return handler


def find_operation(handler: Callable[..., Any]) -> Operation:
    """Return what a handler's operation takes and answers; raise LookupError when nothing is declared."""
    operation: Operation | None = getattr(handler, ATTRIBUTE, None)
    if operation is None:
        raise LookupError(f"{handler!r} has no Operation above it: /openapi.json cannot describe it")
    return operation
