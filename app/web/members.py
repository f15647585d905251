"""Which members an object of a body may have, read from the types that decode it."""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import inspect


def list_members(kind: Any, steps: Sequence[str | int]) -> list[str]:
    """Return the names that the object at this place of a `kind` may have; none when it is no Struct."""
    found = list(_list_choices(inspect.type_info(kind)))
    for step in steps:
        found = [inner for outer in found for inner in _step_into(outer, step)]
    return [field.encode_name for one in found if isinstance(one, inspect.StructType) for field in one.fields]


def _list_choices(kind: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _list_choices(one)
    elif isinstance(kind, inspect.Metadata):
        yield from _list_choices(kind.type)
    else:
        yield kind


def _step_into(kind: inspect.Type, step: str | int) -> Iterator[inspect.Type]:
    if isinstance(kind, inspect.ListType) and isinstance(step, int):
        yield from _list_choices(kind.item_type)
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            if field.encode_name == step:
                yield from _list_choices(field.type)
