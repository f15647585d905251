"""Turn rows of a file into lines for POST /labels, checked by the same rules as in the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from app.api.labels import LabelBody, find_label_faults
from app.exchange.label_cells import CellError, is_empty, parse_time, spell_key, spell_label
from app.exchange.label_files import LABEL_KEYS, Columns, LabelRow

EmptyLabel = Literal["refuse", "skip", "withdraw"]
"""What an empty label means: a mistake, a row that has no label yet, or the withdrawal of its label."""


CONVERSIONS = {"external_id": spell_key, "label": spell_label, "observed_at": parse_time}
"""By member: how a value of a file becomes one of POST /labels."""


class _MalformedRowError(Exception):
    """A row cannot be sent; the message says why."""


@dataclass(slots=True)
class LabelBatch:
    """Lines to send, each with its row, malformed rows with the reason, and the number of empty rows."""

    rows: list[LabelRow] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    malformed: list[tuple[LabelRow, str]] = field(default_factory=list)
    empty: int = 0


def read_batch(
    rows: Sequence[LabelRow], columns: Columns, empty_label: EmptyLabel, observed_at: datetime
) -> LabelBatch:
    """Check rows and encode them.

    A row without a time gets `observed_at` plus a microsecond per row before it. So the later of two rows for one
    prediction counts, even when they arrive repeatedly or in another order.
    """
    members, now, batch = columns.name_members(), datetime.now(UTC), LabelBatch()
    for number, row in enumerate(rows):
        try:
            label = _read_label(row, members, empty_label, observed_at + timedelta(microseconds=number))
            if label is None:
                batch.empty += 1
                continue
            _check_label(label, now)
        except _MalformedRowError as error:
            batch.malformed.append((row, str(error)))
        else:
            batch.rows.append(row)
            batch.lines.append(msgspec.json.encode(label))
    return batch


def _read_label(
    row: LabelRow, members: Mapping[str, str], empty_label: EmptyLabel, observed_at: datetime
) -> LabelBody | None:
    """Return the label of a row, None when it is empty and to be skipped; raise _MalformedRowError."""
    if row.values is None:
        raise _MalformedRowError(row.fault)
    given = {member: row.values[name] for member, name in members.items() if not is_empty(row.values.get(name))}
    if "label" not in given and members["label"] in row.values:
        if empty_label == "skip":
            return None
        if empty_label == "refuse":
            raise _MalformedRowError("label: empty; set --empty-label if empty labels are allowed")
        given["label"] = None
    if all(key in given for key in LABEL_KEYS):
        del given["external_id"]  # rows of an export have both: the id is exact
    for member, convert in CONVERSIONS.items():
        if member in given:
            try:
                given[member] = convert(given[member])
            except CellError as error:
                raise _MalformedRowError(f"{member}: {error}") from error
    try:
        return msgspec.convert({"observed_at": observed_at, **given}, LabelBody)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$.")
        raise _MalformedRowError(f"{path.rstrip('`')}: {detail}") from None


def _check_label(label: LabelBody, now: datetime) -> None:
    faults = [
        f"{pointer.lstrip('/')}: {detail}" if pointer else detail
        for pointer, _, detail in find_label_faults(label, now)
    ]
    if faults:
        raise _MalformedRowError("; ".join(faults))
