"""What the fuzzer sends: requests spoilt in their values, their text, or their bytes, each known by seed and number."""

import copy
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

RAW_EVERY = 5
"""One case in so many has its head and framing spoilt too, and a connection of its own."""

CAR_LOAN = {
    "car_value": 1.5,
    "debt_to_income_ratio": 2.3,
    "loan_length": 3.1,
    "driver_tenure": 4.2,
    "size_of_downpayment": 5.0,
}
MIXTURE = {"pair_0": 0.25, "pair_1": -0.5, "member": True, "city": "Bern"}
ROW, PERSON = list(CAR_LOAN.values()), list(MIXTURE.values())

ID = "01a2082d-0000-7000-8000-000000000000"
AT = "2026-01-01T00:00:00Z"

PREDICT_BODIES: list[Any] = [
    {"features": ROW},
    {"features": CAR_LOAN, "external_id": "order-1", "model": "car-loan", "version": 1},
    {"features": MIXTURE, "model": "mixture", "external_id": "é€😀"},
    {"features": PERSON, "model": "mixture", "version": "1"},
    {"instances": [ROW, CAR_LOAN, ROW], "external_ids": ["a", None, "c"]},
    {"instances": [PERSON, MIXTURE], "model": "mixture"},
    {"instances": [ROW] * 40},
]
LABEL_BODIES: list[Any] = [
    {"external_id": "order-1", "label": 1},
    {"prediction_id": ID, "label": "0", "observed_at": AT},
    {"labels": [{"external_id": "a", "label": 0, "observed_at": AT}, {"external_id": "c", "label": None}]},
]

TOKENS = [
    *("NaN", "-Infinity", "1e400", "-1e400", "01", "1.", ".5", "+1", "0x1", "-", "nul", "'a'", '"', "/**/1", ""),
    *("[" * 5_000, "[" * 800 + "]" * 800, '{"a":' * 800 + "1" + "}" * 800, "9" * 5_000, "1" + "0" * 400, "1e-400"),
    *('"\\ud800"', '"\\u0000"', '"\\x"', '"\t"', "1,1", '1,"features":[1,2,3,4,5]', '1}{"a":1', "1e5", "-0", "1.0"),
]
"""Values that no JSON library would write, put into the text afterwards."""

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**64), 10**400, 0.1, 1e38, 1e39, -1e39),
    *(5e-324, "", "1", "0", "\0", "a\0b", "x" * 200, "x" * 201, "x" * 10_000, "x" * 10_001, "\ud83d", "é" * 100),
    *("car-loan", "mixture", "none", "Bern", "car_value", "../1", "%s", "'; --", AT, "9999-12-31T23:59:59-14:00"),
    *(ID, ID.upper(), "{" + ID + "}", [], {}, [[]], [None], {"": None}, ROW, CAR_LOAN, PERSON, MIXTURE, [ROW] * 50),
]

BYTES = [
    *(b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\r\n\r\n", b" ", b"\t", b":"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b"0", b"-", b"e", b"\\", b"\\u0000", b"null", b"true", b"NaN", b"/", b"?"),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"X-A: " + b"a" * 70_000,
    ),
    *(b"Content-Encoding: gzip\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"GET / HTTP/1.0\r\n\r\n"),
]

HEADERS = [
    *[b""] * 12,
    *(b"Content-Type: application/json; charset=utf-8\r\n", b"Content-Type: text/plain\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Content-Encoding: identity\r\n", b"X-Request-Id: mine\r\n"),
    *(b"X-Request-Id: \xff\xfe\r\n", b"X-Request-Id: " + b"a" * 200 + b"\r\n", b"Accept: text/html\r\n"),
]

TARGETS = [
    *(b"/predictions?limit=3", b"/predictions?since=" + AT.encode(), b"/predictions?class=1&labelled=true&model=a"),
    *(b"/predictions/" + ID.encode(), b"/quality?since=" + AT.encode() + b"&until=" + AT.encode(), b"/models"),
    *(b"/models/car-loan/versions/1", b"/health", b"/docs", b"/page/docs.js", b"/openapi.json", b"/none"),
]


@dataclass(frozen=True, slots=True)
class Case:
    """One connection's worth of bytes, in pieces. `body`: it is one well-framed request with this body."""

    number: int
    pieces: tuple[bytes, ...]
    target: bytes = b""
    body: bytes | None = None


def make_case(seed: int, number: int) -> Case:
    """Make a case, the same for the same seed and number."""
    rng = random.Random(f"{seed}/{number}")
    if number % RAW_EVERY == 0:
        return Case(number, tuple(cut(rng, spoil_bytes(rng, make_requests(rng)))))
    target, body, headers = make_message(rng)
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%b" % (target, headers)
    if rng.random() < 0.05:
        return Case(number, (head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(rng, body),), target, body)
    return Case(number, (head + b"Content-Length: %d\r\n\r\n" % len(body), body), target, body)


def make_message(rng: random.Random) -> tuple[bytes, bytes, bytes]:
    """Make a target, a body, which is spoilt more often than not, and headers."""
    target = rng.choice([b"/predict", b"/predict", b"/predict", b"/predict?", b"/labels"])
    tree = rng.choice(LABEL_BODIES if target == b"/labels" else PREDICT_BODIES)
    if target == b"/labels" and "labels" in tree and rng.random() < 0.5:
        lines = [spoil_json(rng, label) for label in tree["labels"] * rng.randrange(1, 5)]
        return target, spoil_sometimes(rng, b"\n".join(lines)), b"Content-Type: application/x-ndjson\r\n"
    body = spoil_sometimes(rng, spoil_json(rng, tree))
    headers = rng.choice(HEADERS)
    if b"gzip" in headers and rng.random() < 0.5:
        body = gzip.compress(body, mtime=0)
    return target, body, headers


def spoil_sometimes(rng: random.Random, body: bytes) -> bytes:
    if rng.random() < 0.001:
        body += b" " * rng.choice([40_000, 9_000_000])  # where other code reads a body, and where none does
    return spoil_bytes(rng, body) if rng.random() < 0.4 else body


def spoil_json(rng: random.Random, tree: Any) -> bytes:
    """Write a tree as JSON, with none to three of its parts changed."""
    tree, holder = copy.deepcopy(tree), "\ue000"
    for _ in range(rng.randrange(4)):
        places = list(list_places(tree))
        if places:
            rng.choice([replace, replace, replace, remove, rename, wrap, repeat])(rng, *rng.choice(places), holder)
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    for spelt in (f'"{holder}"', '"\\ue000"'):
        while spelt in text:
            text = text.replace(spelt, rng.choice(TOKENS), 1)
    return text.encode(rng.choice(["utf-8"] * 30 + ["utf-8-sig", "utf-16", "utf-32"]), "surrogatepass")


def list_places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in a tree."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield node, key
            yield from list_places(value)


def replace(rng: random.Random, container: Any, key: Any, holder: str) -> None:
    container[key] = holder if rng.random() < 0.3 else copy.deepcopy(rng.choice(VALUES))


def remove(rng: random.Random, container: Any, key: Any, holder: str) -> None:
    del container[key]


def rename(rng: random.Random, container: Any, key: Any, holder: str) -> None:
    if isinstance(container, dict):
        container[rng.choice(["", "a", "features", "instances", "label", "\0", "é", key.upper()])] = container.pop(key)


def wrap(rng: random.Random, container: Any, key: Any, holder: str) -> None:
    container[key] = rng.choice([[container[key]], {"a": container[key]}, [container[key]] * 3])


def repeat(rng: random.Random, container: Any, key: Any, holder: str) -> None:
    if isinstance(container, list) and len(container) <= 50:
        container += copy.deepcopy(container) * rng.choice([1, 2, 20])


def make_requests(rng: random.Random) -> bytes:
    """Make one to three requests in a row, whole."""
    requests = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        close = rng.choice([b"", b"Connection: close\r\n"])
        if rng.random() < 0.3:
            method = rng.choice([b"GET", b"GET", b"PUT", b"OPTIONS", b"DELETE"])
            requests.append(b"%b %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (method, rng.choice(TARGETS), close))
            continue
        target, body, headers = make_message(rng)
        head = b"POST %b HTTP/1.%d\r\nHost: x\r\n%b%b" % (target, rng.choice([0, 1, 1, 1]), close, headers)
        if rng.random() < 0.2:
            requests.append(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(rng, body))
        else:
            requests.append(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return b"".join(requests)


def chunk(rng: random.Random, body: bytes) -> bytes:
    pieces = [piece for piece in cut(rng, body) if piece]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """Cut into one to four pieces."""
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice([0, 0, 1, 3])))
    return [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]


def spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    """Change one to three pieces of some bytes, often small ones, often where the head is."""
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(min(len(data), rng.choice([200, 10**6])) + 1)
        stop = min(len(data), start + rng.choice([0, 1, 1, 2, 8, 100]))
        data = data[:start] + spoil_piece(rng, data[start:stop]) + data[stop:]
        if rng.random() < 0.1:
            data = data[:start]
    return data


def spoil_piece(rng: random.Random, piece: bytes) -> bytes:
    return rng.choice(
        [
            b"",
            piece * 2,
            piece * 50,
            rng.choice(BYTES),
            piece + rng.choice(BYTES),
            rng.randbytes(len(piece)),
            bytes(byte ^ (1 << rng.randrange(8)) for byte in piece),
            piece[::-1],
        ]
    )
