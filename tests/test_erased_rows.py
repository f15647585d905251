"""Blanking rows in bytes: what is erased, what stays, and what damage does to it."""

import json
from uuid import UUID, uuid4

import msgspec
import pytest

from app.prediction_log.erased_rows import ROW_START, RowEraser, RowFinder, Search, digest_external_id
from app.prediction_log.record import Record
from tests.support.records import make_record

ERASURE = uuid4()
SECRETS = (b"secret-feature", b"secret-key", b"secret-request")

ERASED_NAMES = ("features", "external_id", "request_id")

NASTY = [
    'a "quote" and a \\ backslash',
    'text with {"prediction_id":"00000000-0000-7000-8000-000000000000"} inside',
    '","external_id":"secret-key","x":"',
    "\u00e9\u65e5\u672c\u0001\u2028}]},{",
    "",
]
"""Texts that look like the syntax around them once they are encoded wrongly."""


def make_secret(**changes: object) -> Record:
    """Make a row whose values can be recognized in bytes."""
    values = {
        "features": {"name": "secret-feature", "n": 1.55},
        "external_id": "secret-key",
        "request_id": "secret-request",
    }
    return msgspec.structs.replace(make_record(), **{**values, **changes})


def make_search(external_id: str) -> Search:
    return Search(ERASURE, b"salt" * 8, digest_external_id(external_id, b"salt" * 8))


def encode(*records: Record) -> bytes:
    return b",".join(map(msgspec.json.encode, records))


def decode(rows: bytes) -> list[dict[str, object]]:
    """Decode with another JSON parser than the one that encoded."""
    decoded: list[dict[str, object]] = json.loads(b"[" + rows + b"]")
    return decoded


@pytest.mark.parametrize("text", NASTY)
def test_only_the_erased_row_of_a_frame_loses_its_values(text: str) -> None:
    others = [
        msgspec.structs.replace(make_record(external_id=text), features={text: text, "external_id": text})
        for _ in range(4)
    ]
    erased = make_secret(features={text: "secret-feature" + text})
    rows = encode(*others[:2], erased, *others[2:])

    blank = RowEraser({erased.prediction_id: ERASURE}, []).blank(rows, is_intact=True)

    assert len(blank) == len(rows)
    decoded = decode(blank)
    assert [decoded[at] for at in (0, 1, 3, 4)] == decode(encode(*others))
    kept = {name: value for name, value in decode(encode(erased))[0].items() if name not in ERASED_NAMES}
    assert decoded[2] == {**kept, "features": {}}
    assert not any(secret in blank for secret in SECRETS if secret.decode() not in text)


def test_frames_without_an_erased_row_stay_as_they_are() -> None:
    rows = encode(make_secret(), make_record())
    eraser = RowEraser({uuid4(): ERASURE}, [make_search("somebody else")])

    assert eraser.blank(rows, is_intact=True) is rows
    assert eraser.copies == {}


def test_a_blank_row_is_not_blanked_or_counted_again() -> None:
    erased = make_secret()
    eraser = RowEraser({erased.prediction_id: ERASURE}, [])
    blank = eraser.blank(encode(make_record(), erased, make_record()), is_intact=True)

    again = eraser.blank(blank, is_intact=True)

    assert again == blank
    assert eraser.copies == {ERASURE: 1}


@pytest.mark.parametrize("key", ["order-7", "", *NASTY])
def test_rows_of_a_searched_external_id_are_found(key: str) -> None:
    wanted = [make_record(external_id=key) for _ in range(3)]
    others = [make_record(), make_record(external_id=f"{key}!"), make_record(external_id=key.upper() + "_")]
    finder = RowFinder([make_search(key)])

    finder.look(encode(wanted[0], others[0], wanted[1]))
    finder.look(encode(*others))
    finder.look(b"\x00\xff" + encode(wanted[2]) + b"\xf5SKF")  # what a damaged frame may look like

    assert finder.found == {ERASURE: {record.prediction_id for record in wanted}}


@pytest.mark.parametrize("is_known", [True, False], ids=["by its id", "by its key"])
@pytest.mark.parametrize("byte", [b"\xff", b"e", b'"', b"\\", b"}", b"{", b",", b"\0"])
def test_no_damaged_byte_saves_the_values_of_an_erased_row(byte: bytes, is_known: bool) -> None:
    before, after = make_record(external_id="before"), make_record(external_id="after")
    erased = make_secret()
    rows = encode(before, erased, after)
    start, end = len(encode(before)), len(rows) - len(encode(after))

    for at in range(len(rows)):
        damaged = rows[:at] + byte + rows[at + 1 :]
        if not is_known and damaged.find(b'"external_id":"secret-key"') < 0:
            continue  # nothing tells any more whose row it is
        eraser = RowEraser({erased.prediction_id: ERASURE} if is_known else {}, [make_search("secret-key")])
        blank = eraser.blank(damaged, is_intact=False)

        assert len(blank) == len(rows)
        assert not any(secret in blank for secret in SECRETS), at
        assert blank[:start].strip(b" ") == damaged[:start].strip(b" ")
        assert blank[end:].strip(b" ,") == damaged[end:].strip(b" ,")


def test_every_record_begins_as_rows_are_recognized() -> None:
    assert encode(make_record()).startswith(ROW_START)
    assert UUID(encode(make_record())[len(ROW_START) :][:36].decode()).version == 7
