"""How a text file is written: its encoding and, in CSV, its delimiter."""

import codecs
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

DELIMITERS = (",", ";", "\t", "|")
"""What is tried when nothing is said: spreadsheets write semicolons where the comma is in numbers, databases tabs."""

PlainFile: TypeAlias = "gzip.GzipFile | io.BufferedReader"


@dataclass(frozen=True, slots=True)
class TextForm:
    """What the operator has said; None: find out."""

    encoding: str | None = None
    delimiter: str | None = None


def find_encoding(file: PlainFile) -> str:
    """Return the encoding by the first bytes: UTF-16 with or without a byte order mark, else UTF-8."""
    first = file.peek(4)[:4]
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(first) == 4 and first[0] and not first[1] and first[2] and not first[3]:
        return "utf-16-le"
    if len(first) == 4 and not first[0] and first[1] and not first[2] and first[3]:
        return "utf-16-be"
    return "utf-8-sig"


def read_byte_lines(file: PlainFile, encoding: str) -> Iterator[bytes]:
    """Yield lines as UTF-8. Lines of a file in UTF-8 are not decoded: each may be wrong by itself."""
    if codecs.lookup(encoding).name in {"utf-8", "utf-8-sig"}:
        for number, line in enumerate(file):
            yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line
    else:
        with io.TextIOWrapper(file, encoding, newline="\n") as text:
            yield from (line.encode() for line in text)
