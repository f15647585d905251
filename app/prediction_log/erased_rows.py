"""Find and blank rows in encoded records. Blanking keeps the length, so that positions in files stay valid.

A blank row has no features, no external id and no request id; what the quality numbers need stays.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from app.prediction_log.record import ERASED_VALUES, Record

ROW_START = b'{"prediction_id":"'
"""How every record begins. In a text of a record the quotes are escaped, so no text contains it."""

ANY_ID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ANY_EXTERNAL_ID = re.compile(rb'"external_id":("(?:[^"\\]|\\.)*")')

DIGEST_BYTES = 32

KEPT_FIELDS = frozenset(Record.__struct_fields__) - ERASED_VALUES.keys()
"""What a blank row has, besides empty features."""

DAMAGE = (msgspec.MsgspecError, UnicodeDecodeError)
"""What decoding damaged bytes raises."""


@dataclass(frozen=True, slots=True)
class Search:
    """The external id of an erasure, as a digest whose key is a random salt."""

    erasure_id: UUID
    salt: bytes
    digest: bytes

    def is_for(self, external_id: str) -> bool:
        """Return whether this is the external id that is searched."""
        return digest_external_id(external_id, self.salt) == self.digest


def digest_external_id(external_id: str, salt: bytes) -> bytes:
    """Return the digest by which replicas recognize an external id in their spools."""
    return hashlib.blake2b(external_id.encode(), key=salt, digest_size=DIGEST_BYTES).digest()


class RowFinder:
    """Collects the prediction ids of complete rows with a searched external id: `found`, by erasure."""

    def __init__(self, searches: Sequence[Search]) -> None:
        self._searches = searches
        self.found: dict[UUID, set[UUID]] = {search.erasure_id: set() for search in searches}

    def look(self, rows: bytes) -> None:
        """Look at rows, or at bytes that may contain rows."""
        for keys in _read_all_keys(rows):
            if keys.external_id is None:
                continue
            for search in self._searches:
                if search.is_for(keys.external_id):
                    self.found[search.erasure_id].add(UUID(keys.prediction_id))


class RowEraser:
    """Blanks the rows of erased predictions, and damaged bytes that name one by its id or a searched external id.

    `copies` counts what was blanked, by erasure.
    """

    def __init__(self, erased: Mapping[UUID, UUID], searches: Sequence[Search]) -> None:
        self._erasures = {str(prediction_id): erasure_id for prediction_id, erasure_id in erased.items()}
        self._searches = searches
        self.copies: Counter[UUID] = Counter()

    def blank(self, rows: bytes, is_intact: bool) -> bytes:
        """Return rows with the erased ones blanked; the length is the same.

        `is_intact`: a checksum confirms the bytes. Else they may be damaged rows, or something else.
        """
        if is_intact and all(one.prediction_id not in self._erasures for one in _read_keys(rows) or ()):
            return rows
        return b"".join([self._blank_row(text, is_intact) for text in _split_rows(rows)])

    def _blank_row(self, text: bytes, is_intact: bool) -> bytes:
        """Blank the row that `text` begins with, and what follows it: a comma, or damaged bytes."""
        end = _find_row_end(text)
        row, rest = text[:end], text[end:]
        is_next_row = rest.startswith(b",{") or rest[2:].startswith(ROW_START[1:])
        if is_next_row or not rest.strip(b" ,"):
            erasure_id = self._find_erasure(row, is_intact) if row else None
            rest_erasure_id = self._find_named(rest)
        else:  # damage has ended the row too early, or nothing of it can be decoded
            erasure_id = rest_erasure_id = self._find_named(text)
        if erasure_id is not None:
            row = self._count(erasure_id, row, _encode_blank(row))
        if rest_erasure_id is not None:
            rest = self._count(rest_erasure_id, rest, b" " * len(rest))
        return row + rest

    def _find_erasure(self, row: bytes, is_intact: bool) -> UUID | None:
        keys = _read_keys(row)
        if not keys:
            return self._find_named(row)
        erasure_id = self._erasures.get(keys[0].prediction_id)
        return erasure_id if is_intact or erasure_id is not None else self._find_named(row)

    def _find_named(self, damaged: bytes) -> UUID | None:
        """Return the erasure of a row that damaged bytes name, None when they name none."""
        for match in ANY_ID.finditer(damaged):
            if erasure := self._erasures.get(match.group().decode()):
                return erasure
        external_ids = list(_read_external_ids(damaged))
        return next((one.erasure_id for one in self._searches if any(map(one.is_for, external_ids))), None)

    def _count(self, erasure_id: UUID, before: bytes, after: bytes) -> bytes:
        self.copies[erasure_id] += before != after
        return after


class _RowKeys(msgspec.Struct):
    prediction_id: str
    external_id: str | None = None


_decode_keys = msgspec.json.Decoder(list[_RowKeys]).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_prefix = json.JSONDecoder().raw_decode


def _read_all_keys(rows: bytes) -> list[_RowKeys]:
    keys = _read_keys(rows)
    if keys is not None:
        return keys
    complete = [text[: _find_row_end(text)] for text in _split_rows(rows)]
    return [one for row in complete if row for one in _read_keys(row) or ()]


def _read_keys(rows: bytes) -> list[_RowKeys] | None:
    """Return the keys of encoded records joined by commas; None when the bytes are something else."""
    try:
        return _decode_keys(b"[" + rows + b"]")
    except DAMAGE:
        return None


def _split_rows(data: bytes) -> Iterator[bytes]:
    """Split at each beginning of a row; the first part is what stands before all rows, mostly nothing."""
    start = 0
    while (end := data.find(ROW_START, start + 1)) >= 0:
        yield data[start:end]
        start = end
    yield data[start:]


def _find_row_end(text: bytes) -> int:
    """Return where the row that `text` begins with ends; 0 when there is none, or when it is damaged."""
    if not text.startswith(ROW_START):
        return 0
    try:
        _, end = _decode_prefix(text.decode("latin-1"))  # one character per byte; what matters in JSON is ASCII
    except ValueError:
        return 0
    return end


def _read_external_ids(damaged: bytes) -> Iterator[str]:
    for match in ANY_EXTERNAL_ID.finditer(damaged):
        try:
            yield _decode_text(match.group(1))
        except DAMAGE:
            continue


def _encode_blank(row: bytes) -> bytes:
    """Encode a row without its values; spaces keep its length. A row that cannot be decoded becomes spaces."""
    try:
        fields = _decode_fields(row)
    except DAMAGE:
        return b" " * len(row)
    kept = {name: value for name, value in fields.items() if name in KEPT_FIELDS}
    blank = msgspec.json.encode({**kept, "features": msgspec.Raw(b"{}")})
    return blank.ljust(len(row)) if len(blank) <= len(row) else b" " * len(row)
