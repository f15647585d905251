"""What an operation takes and answers, declared above its handler: /openapi.json is generated from it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from app.web.deployment import Deployment
from app.web.json import JSON

Schema = dict[str, Any]

Tag = Literal["predictions", "labels", "quality", "models", "operations", "open-inference", "unsupported"]

Content = type[msgspec.Struct] | type[list[Any]] | str
"""What an answer holds: this Struct in JSON, a list of Structs in JSON, or something of this media type."""

Handler = TypeVar("Handler", bound=Callable[..., Any])

ATTRIBUTE = "operation"
"""The attribute of a handler that holds its operation."""


class Example(NamedTuple):
    """A body that works, under a few words on what it does."""

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
        """Whether a request must have a body: it need not when no field of the Struct is required."""
        return isinstance(self.shape, dict) or any(one.required for one in msgspec.structs.fields(self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation, as a decorator of its handler, whose docstring is the description.

    `answers` are what each status may hold; `problems` are the statuses answered as an error, beside those that every
    request may be answered. `path` has the type of each parameter in the path, `query` is the Struct of the query.
    What depends on the models that are loaded is a function: `bodies`, and `examples`, the values by name that replace
    the examples of parameters.
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
