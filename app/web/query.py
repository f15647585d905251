"""Query parameters: decoded into a Struct, as strictly as bodies."""

from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from starlette.requests import Request

from app.errors import Fault, InvalidRequestError, invalid
from app.web.body import explain_instant
from app.web.schemas import make_properties

T = TypeVar("T", bound=msgspec.Struct)


def read_query(request: Request, kind: type[T]) -> T:
    """Decode the query parameters; raise 422 that names the first unknown, repeated or invalid one."""
    values = dict(request.query_params)
    known = msgspec.structs.fields(kind)
    for name, value in request.query_params.multi_items():
        if name not in {field.encode_name for field in known}:
            allowed = ", ".join(field.encode_name for field in known)
            detail = f"there is no such parameter; allowed are {allowed}"
            raise invalid(Fault(f"?{name[:50]}", "unknown_parameter", detail))
        if len(request.query_params.getlist(name)) > 1:
            raise invalid(Fault(f"?{name}", "repeated_parameter", "given more than once"))
        if "\x00" in value:
            raise invalid(Fault(f"?{name}", "not_storable", "text with a NUL character"))
    for field in known:
        if field.required and field.encode_name not in values:
            example = _spell_example(kind, field.encode_name)
            raise invalid(Fault(f"?{field.encode_name}", "missing_parameter", f"it is needed, for example {example}"))
    try:
        query = msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$.")
        raise _refuse_value(kind, path.rstrip("`"), detail) from error
    for field in known:
        value, text = getattr(query, field.name), values.get(field.encode_name)
        if isinstance(value, datetime) and text is not None:
            _check_instant(kind, field.encode_name, text, value)
    return query


def _refuse_value(kind: type[msgspec.Struct], name: str, detail: str) -> InvalidRequestError:
    """Return the error for the value of a parameter, with an example of one that is allowed."""
    explained = explain_instant(detail)
    shown = explained if explained != detail else f"{detail}, for example {_spell_example(kind, name)}"
    return invalid(Fault(f"?{name}", "invalid", shown))


def _spell_example(kind: type[msgspec.Struct], name: str) -> str:
    return f"?{name}={make_properties(kind)[name]['examples'][0]}"


def _check_instant(kind: type[msgspec.Struct], name: str, text: str, instant: datetime) -> None:
    """Refuse a number, and a time outside the years 1 to 9999 in UTC: asyncpg could not send it."""
    try:
        msgspec.convert(text, datetime)
        instant.astimezone(UTC)
    except msgspec.ValidationError as error:
        raise _refuse_value(kind, name, str(error)) from error
    except OverflowError:
        raise invalid(Fault(f"?{name}", "invalid", "outside the years 1 to 9999 in UTC")) from None
