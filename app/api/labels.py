"""POST /labels: the steps of a label, from the body to the counts, which are answered after COMMIT."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from app.api.label_schemas import describe_label_bodies
from app.database.pool import borrow_connection
from app.database.queries import read_time
from app.errors import Fault, invalid
from app.prediction_log.record import TEXT_LIMIT, is_storable
from app.quality.label_classes import Rejection, decode_classes
from app.quality.label_targets import Label
from app.quality.labels import Outcome, Taken, take_labels
from app.serving.signature import ClassName
from app.state import get_state
from app.web.body import decode_body, get_media_type, read_body, run_sized
from app.web.fields import PredictionId
from app.web.json import answer_json
from app.web.operation import Operation
from app.web.query import read_query

MEDIA_TYPES = (b"application/json", b"application/x-ndjson")

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far ahead of the database's clock a label's `observed_at` may be."""

MOST_REJECTIONS = 20
"""Most rejected labels in an answer, unless the client asks for another number."""

MOST_ALLOWED, FEWER_ALLOWED = 100, 10
"""Most classes that the answer lists for one rejected label; fewer when it lists more than MOST_REJECTIONS labels."""


class LabelBody(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """One label, for a prediction id or for the client's own key; null withdraws it."""

    label: Annotated[
        Annotated[str, Meta(max_length=TEXT_LIMIT)] | int | float | UnsetType | None,
        Meta(description="The true class, as text or as a whole number; null withdraws the label", examples=[1]),
    ] = UNSET
    prediction_id: Annotated[
        PredictionId | None, Meta(description="The prediction's id; or else `external_id`", examples=[None])
    ] = None
    external_id: Annotated[
        Annotated[str, Meta(max_length=TEXT_LIMIT)] | None,
        Meta(description="The client's own key, which it sent to /predict with the row", examples=["order-1"]),
    ] = None
    observed_at: Annotated[
        Annotated[datetime, Meta(tz=True)] | None,
        Meta(
            description="When the class was observed: the newest counts; null: when it is received",
            examples=["2026-01-01T00:00:00Z"],
        ),
    ] = None


class LabelsBody(LabelBody, forbid_unknown_fields=True, gc=False):
    """One label, or many under `labels`."""

    labels: Annotated[list[LabelBody] | UnsetType, Meta(description="Many labels, and then no other member")] = UNSET


class LabelQuery(msgspec.Struct):
    """How much the answer tells."""

    rejections: Annotated[
        int, Meta(ge=0, le=10_000, description="Most rejected labels that the answer lists", examples=[20])
    ] = MOST_REJECTIONS


class RejectedLabel(msgspec.Struct):
    """A label that was not taken, although its prediction is stored."""

    pointer: Annotated[
        str,
        Meta(description="Where it is in the request: a JSON pointer, `/` and a line", examples=["/labels/0/label"]),
    ]
    code: Annotated[
        Literal["unknown_class", "ambiguous_class"], Meta(description="Why, for programs", examples=["unknown_class"])
    ]
    detail: Annotated[str, Meta(description="Why, for people", examples=["not a class of car-loan version 1"])]
    allowed: Annotated[list[ClassName], Meta(description="The classes, the first 100 of many", examples=[[0, 1]])]


class LabelCounts(msgspec.Struct):
    """What became of each label; the counts from `new` to `rejected` add up to `received`."""

    received: Annotated[int, Meta(description="Labels in the request", examples=[2])]
    new: Annotated[int, Meta(description="First labels of their predictions", examples=[1])]
    unchanged: Annotated[
        int, Meta(description="Labels that changed nothing: an equal or a newer one was stored already", examples=[0])
    ]
    corrected: Annotated[int, Meta(description="Labels that replaced another class", examples=[0])]
    withdrawn: Annotated[int, Meta(description="Labels that were withdrawn", examples=[0])]
    pending: Annotated[
        int, Meta(description="Labels that wait for their prediction to be stored, for up to 30 days", examples=[1])
    ]
    expired: Annotated[int, Meta(description="Labels whose prediction is no longer kept", examples=[0])]
    rejected: Annotated[int, Meta(description="Labels of a class that the model does not have", examples=[0])]
    predictions: Annotated[
        int,
        Meta(
            description="Stored predictions that have these labels now; a key may have many, or more to come",
            examples=[1],
        ),
    ]
    rejections: Annotated[list[RejectedLabel], Meta(description="The first rejected labels, by default 20")]


DOCUMENT_DECODER = msgspec.json.Decoder(LabelsBody)
LINE_DECODER = msgspec.json.Decoder(LabelBody)

LABEL_EXAMPLE = '{"external_id": "order-1", "label": 1}'


@Operation(
    id="label",
    tag="labels",
    summary="Take true labels: one, many, or one per line",
    answers={200: [LabelCounts]},
    problems=[413, 415, 422],
    query=LabelQuery,
    bodies=lambda deployment: describe_label_bodies(LabelBody, deployment),
)
async def post_labels(request: Request) -> Response:
    """Take all labels or none, and answer how many had which outcome. The 200 is sent after COMMIT."""
    state = get_state(request.scope)
    query = read_query(request, LabelQuery)
    body = await read_body(request.scope, request.receive, state.max_body_bytes, MEDIA_TYPES)
    decode = _decode_lines if get_media_type(request.scope) == b"application/x-ndjson" else _decode_document
    labels, pointers = await run_sized(body, _check_labels, decode, body, state.max_batch_rows, state.clock.now())
    async with borrow_connection(state.pool) as connection:
        now = await read_time(connection)
        taken = await take_labels(connection, await run_sized(body, _date_labels, labels, now))
    return answer_json(_count_labels(taken, pointers, query.rejections))


def _decode_document(body: bytes) -> Iterator[tuple[str, str, LabelBody]]:
    """Yield (pointer, place in words, label) of a JSON document with one label or many."""
    document = decode_body(DOCUMENT_DECODER, body, example=LABEL_EXAMPLE)
    if isinstance(document.labels, UnsetType):
        yield "", "", document
        return
    if document != LabelsBody(labels=document.labels):
        raise invalid(Fault("", "unknown_field", "no other member is allowed beside labels"))
    for index, label in enumerate(document.labels):
        yield f"/labels/{index}", "", label


def _decode_lines(body: bytes) -> Iterator[tuple[str, str, LabelBody]]:
    """Yield (pointer, place in words, label) of one label per line; blank lines do not count as labels."""
    for index, line in enumerate(body.split(b"\n")):
        if line.strip():
            pointer, where = f"/{index}", f"line {index + 1}: "
            yield pointer, where, decode_body(LINE_DECODER, line, pointer, where, LABEL_EXAMPLE)


def _check_labels(
    decode: Callable[[bytes], Iterator[tuple[str, str, LabelBody]]], body: bytes, limit: int, received_at: datetime
) -> tuple[list[Label], list[str]]:
    """Check all labels; return them and where each is. Raise 422 with every fault of every label."""
    labels: list[Label] = []
    pointers: list[str] = []
    faults: list[Fault] = []
    for pointer, where, given in decode(body):
        found = [
            Fault(pointer + at, code, where + detail) for at, code, detail in find_label_faults(given, received_at)
        ]
        faults += found
        if not found:
            labels.append(_make_label(given, received_at))
            pointers.append(pointer)
    if faults:
        raise invalid(*faults)
    if not 1 <= len(labels) <= limit:
        raise invalid(Fault("", "batch_size", f"{len(labels)} labels, allowed are 1 to {limit}"))
    return labels, pointers


def _make_label(given: LabelBody, received_at: datetime) -> Label:
    """Make the label that a client gave; without a time, it was observed when it was received."""
    observed_at = given.observed_at or received_at
    return Label(given.prediction_id, given.external_id, _spell_class(given.label), observed_at, received_at)


def _date_labels(labels: Sequence[Label], now: datetime) -> list[Label]:
    """Date labels by the database's clock, which all replicas share; without a time they were observed `now`."""
    return [
        msgspec.structs.replace(
            label,
            observed_at=now if label.observed_at == label.received_at else label.observed_at,
            received_at=now,
        )
        for label in labels
    ]


def find_label_faults(given: LabelBody, now: datetime) -> Iterator[tuple[str, str, str]]:
    """Yield (pointer, code, detail) of everything wrong with one label."""
    if (given.prediction_id is None) == (given.external_id is None):
        yield "", "one_key", f"give either prediction_id or external_id, for example {LABEL_EXAMPLE}"
    if given.external_id is not None and not is_storable(given.external_id):
        yield "/external_id", "not_storable", "text with a NUL character"
    if isinstance(given.label, UnsetType):
        yield "/label", "missing_field", "label is missing; null withdraws one"
    elif isinstance(given.label, float) and not given.label.is_integer():
        yield "/label", "wrong_type", "a class is a text or a whole number"
    elif isinstance(given.label, int | float) and abs(given.label) >= 2**63:
        yield "/label", "out_of_range", "a class is a whole number of 64 bits"
    elif isinstance(given.label, str) and not is_storable(given.label):
        yield "/label", "not_storable", "text with a NUL character"
    if given.observed_at is not None and given.observed_at > now + CLOCK_TOLERANCE:
        yield "/observed_at", "in_the_future", "more than five minutes in the future"
    if given.observed_at is not None and given.observed_at < datetime.min.replace(tzinfo=UTC):
        yield "/observed_at", "out_of_range", "before the year 1"


def _spell_class(label: str | float | UnsetType | None) -> str | None:
    """Return a label as the text of its class: 1, 1.0 and "1" are one class."""
    if label is None or isinstance(label, str):
        return label
    return str(int(label)) if not isinstance(label, UnsetType) else None


def _count_labels(taken: Taken, pointers: Sequence[str], limit: int) -> LabelCounts:
    """Return the counts, with the first `limit` rejected labels."""
    first = sorted(taken.rejected)[:limit]
    classes = MOST_ALLOWED if len(first) <= MOST_REJECTIONS else FEWER_ALLOWED
    return LabelCounts(
        received=len(pointers),
        **{outcome: taken.counts[outcome] for outcome in get_args(Outcome)},
        predictions=taken.predictions,
        rejections=[_explain_rejection(pointers[at], taken.rejected[at], classes) for at in first],
    )


def _explain_rejection(pointer: str, rejection: Rejection, most_allowed: int) -> RejectedLabel:
    """Say why a label was rejected, without its text: it may be confidential."""
    classes = decode_classes(rejection.classes)
    version = f"{rejection.model_name} version {rejection.model_version}"
    detail = f"fits several classes of {version}" if rejection.is_ambiguous else f"not a class of {version}"
    if len(classes) > most_allowed:
        detail += f", which has {len(classes)}"
    code: Literal["ambiguous_class", "unknown_class"] = "ambiguous_class" if rejection.is_ambiguous else "unknown_class"
    return RejectedLabel(f"{pointer}/label", code, detail, list(classes[:most_allowed]))
