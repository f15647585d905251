"""How the fuzzer reads answers off the wire, and what is wrong with them."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tests.support.answers import PROBLEM_MEMBERS, SECRETS

STATUSES = {200, 304, 400, 404, 405, 408, 413, 414, 415, 422, 431, 503}
"""Whatever is sent: nothing else is an answer, above all not 500."""

READ_SECONDS = 15.0
"""The limits of the fuzzed server are all below a second: what takes longer hangs."""


class WrongAnswerError(Exception):
    """The server answered as it never may."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `body` is decoded where it is JSON."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True, slots=True)
class Said:
    """What a 200 of /predict said of a row, and what was sent for it, where that is known."""

    prediction_id: UUID
    model: str
    prediction: int | str
    score: float
    probabilities: list[float]
    sent: Any = None
    external_id: str | None = None


async def read_answer(reader: asyncio.StreamReader) -> Answer | None:
    """Read and check one answer; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise WrongAnswerError(f"cut off in the head: {error.partial[-200:]!r}") from error
        return None
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split()[1])
    if status == 100:
        return await read_answer(reader)
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:-2])}
    try:
        body = await reader.readexactly(int(headers.get("content-length", 0)))
    except asyncio.IncompleteReadError as error:
        raise WrongAnswerError(f"{status} cut off in the body") from error
    return check_answer(Answer(status, headers, body))


def check_answer(answer: Answer) -> Answer:
    """Return an answer with its JSON decoded; raise WrongAnswerError for one that may not be."""
    kind = answer.headers.get("content-type", "")
    if answer.status not in STATUSES:
        raise WrongAnswerError(f"status {answer.status}: {answer.body[:300]!r}")
    if "x-request-id" not in answer.headers:
        raise WrongAnswerError(f"status {answer.status} without X-Request-Id")
    decoded = json.loads(answer.body) if "json" in kind else answer.body
    if answer.status < 400 or (answer.status == 503 and kind == "application/json"):
        return Answer(answer.status, answer.headers, decoded)
    is_problem = kind == "application/problem+json" and set(decoded) - {"errors"} == PROBLEM_MEMBERS
    if not is_problem or decoded["status"] != answer.status or decoded["instance"] != answer.headers["x-request-id"]:
        raise WrongAnswerError(f"no problem+json: {answer}")
    if any(secret.encode() in answer.body for secret in SECRETS):
        raise WrongAnswerError(f"betrays something: {answer}")
    return Answer(answer.status, answer.headers, decoded)


def list_said(answer: Answer, body: bytes | None = None) -> list[Said]:
    """List the rows that an answer promises; with the body of its request, what was sent for each."""
    if (
        answer.status != 200
        or not isinstance(answer.body, dict)
        or answer.headers["content-type"] != "application/json"
    ):
        return []
    if "received" in answer.body:
        others = {"received", "predictions", "rejections"}
        if answer.body["received"] != sum(count for name, count in answer.body.items() if name not in others):
            raise WrongAnswerError(f"the counts of labels do not add up: {answer.body}")
        return []
    rows = answer.body.get("predictions", [answer.body])
    if not rows or "prediction_id" not in rows[0] or "created_at" in rows[0]:
        return []
    sent = list_sent(body) if body is not None else [(None, None)] * len(rows)
    if len(sent) != len(rows):
        raise WrongAnswerError(f"{len(rows)} answers for {len(sent)} rows")
    return [
        Said(UUID(row["prediction_id"]), row["model"], row["prediction"], row["score"], chances, *given)
        for row, given in zip(rows, sent, strict=True)
        if (chances := list(row["probabilities"].values()))
    ]


def list_sent(body: bytes) -> list[tuple[Any, str | None]]:
    """List the rows of a valid body, all numbers as floats, with their external ids."""
    asked = json.loads(body, parse_int=float)
    if "features" in asked:
        return [(asked["features"], asked.get("external_id"))]
    rows = asked["instances"]
    return list(zip(rows, asked.get("external_ids") or [None] * len(rows), strict=True))
