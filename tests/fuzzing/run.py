"""Runs the fuzzer's cases against a server, and compares what was answered with what is stored."""

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import asyncpg
import numpy as np

from app.server.deadlines import Limits
from tests.fuzzing.answers import READ_SECONDS, Answer, Said, WrongAnswerError, list_said, read_answer
from tests.fuzzing.cases import CAR_LOAN, MIXTURE, RAW_EVERY, Case, make_case
from tests.support.family_models import make_mixture
from tests.support.onnx_models import write_model
from tests.support.processes import ROOT, Server, wait_until

LIMITS = Limits(
    head_seconds=0.3,
    body_seconds=0.6,
    progress_seconds=0.3,
    keep_alive_seconds=0.3,
    write_seconds=5.0,
    linger_seconds=0.3,
)
"""Shorter than usual, so that a connection on which nothing more comes ends soon."""

WORKERS = 8
RAW_WORKERS = 48
"""These mostly wait for a limit."""

ATTEMPTS = 3
"""A kept connection may have ended, and so may a new one when this process was held up for longer than LIMITS."""

NAMES = {"car-loan": list(CAR_LOAN), "mixture": list(MIXTURE)}


@dataclass
class Findings:
    """What came of the cases; `wrong` is what may not be, by case."""

    statuses: Counter[int] = field(default_factory=Counter)
    said: dict[UUID, Said] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    resets: int = 0
    stored: int = 0

    def add(self, answer: Answer, body: bytes | None = None) -> None:
        """Count an answer and keep what it promises."""
        self.statuses[answer.status] += 1
        self.said.update({said.prediction_id: said for said in list_said(answer, body)})


async def fuzz(database_url: str, directory: Path, seed: int, first: int, count: int) -> Findings:
    """Send the cases `first` to `first + count` of a seed to a server of their own, and look at what it stored."""
    server = make_server(database_url, directory)
    findings = Findings()
    await server.start()
    try:
        framed = (number for number in range(first, first + count) if number % RAW_EVERY)
        raw = (number for number in range(first, first + count) if number % RAW_EVERY == 0)
        tasks = [run_framed(server.port, seed, framed, findings) for _ in range(WORKERS)]
        tasks += [run_raw(server.port, seed, raw, findings) for _ in range(RAW_WORKERS)]
        await asyncio.gather(*tasks)
        if not await server.is_ready():
            findings.wrong.append("the server is not ready at the end")
        await check_rows(database_url, findings)
    finally:
        await server.kill()
    for word in (b"Traceback", b"ERROR", b"predict failed"):
        if word in server.log:
            findings.wrong.append(f"the server's log has {word.decode()}: {server.log[-3000:].decode()}")
    return findings


def make_server(database_url: str, directory: Path) -> Server:
    """Make `scorekeeper serve` with short limits and two models."""
    models = directory / "models"
    write_model(models, (ROOT / "demo" / "models" / "car-loan" / "1" / "model.onnx").read_bytes(), "car-loan", "1")
    write_model(models, make_mixture().content, "mixture", "1")
    environment = {"DATABASE_URL": database_url, "DATA_DIR": str(directory / "data"), "MODEL_DIR": str(models)}
    server = Server({**environment, "DEFAULT_MODEL": "car-loan"})
    call = f"serve('127.0.0.1', {server.port}, limits={LIMITS!r})"
    server.command = ("-c", f"from app.server.deadlines import Limits; from app.server.serve import serve; {call}")
    return server


async def run_framed(port: int, seed: int, numbers: Iterator[int], findings: Findings) -> None:
    """Send well-framed requests one after the other over a connection that is kept as long as the server keeps it."""
    connection = Connection(port)
    for number in numbers:
        case = make_case(seed, number)
        with note_wrong(findings, number):
            answer = await connection.ask(case)
            findings.add(answer, case.body if case.target.startswith(b"/predict") else None)
    connection.close()


class Connection:
    """A client's connection, made when it is needed and kept as long as the server keeps it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, case: Case) -> Answer:
        """Send a case and return its answer; again when the connection ends before: it may have been idle too long."""
        for _ in range(ATTEMPTS):
            is_new, started = self._streams is None, time.monotonic()
            try:
                answer = await self._exchange(case)
            except Exception:
                self.close()
                raise
            if answer is not None:
                return answer
            self.close()
            if is_new and time.monotonic() - started < LIMITS.head_seconds:
                raise WrongAnswerError("a new connection ended without an answer, and before any limit")
        raise WrongAnswerError(f"no answer, {ATTEMPTS} times")

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].transport.abort()
        self._streams = None

    async def _exchange(self, case: Case) -> Answer | None:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        async with asyncio.timeout(READ_SECONDS):
            await send(writer, case)
            with suppress(ConnectionError):
                return await read_answer(reader)
        return None


async def run_raw(port: int, seed: int, numbers: Iterator[int], findings: Findings) -> None:
    """Send spoilt requests, each over its own connection, which the server must end by itself."""
    for number in numbers:
        case = make_case(seed, number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with note_wrong(findings, number):
            async with asyncio.timeout(READ_SECONDS):
                await send(writer, case)
                try:
                    while answer := await read_answer(reader):
                        findings.add(answer)
                except ConnectionError:
                    findings.resets += 1
        writer.transport.abort()


async def send(writer: asyncio.StreamWriter, case: Case) -> None:
    """Send all pieces, unless the server ends the connection before; what it answered can be read then."""
    with suppress(ConnectionError):
        for piece in case.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)


@contextmanager
def note_wrong(findings: Findings, number: int) -> Iterator[None]:
    """Note what is wrong with a case, and let the others go on."""
    try:
        yield
    except TimeoutError:
        findings.wrong.append(f"case {number}: not over after {READ_SECONDS:g} s")
    except (WrongAnswerError, ValueError, KeyError) as error:
        findings.wrong.append(f"case {number}: {type(error).__name__}: {error}")


async def check_rows(database_url: str, findings: Findings) -> None:
    """Compare what was promised with what is stored, and look whether every stored row is whole."""
    connection = await asyncpg.connect(database_url)
    try:

        async def is_complete() -> bool:
            found = await connection.fetchval(COUNT_STORED, list(findings.said))
            return bool(found == len(findings.said))

        with suppress(AssertionError):  # what is missing is named below
            await wait_until(is_complete)
        rows = await connection.fetch(SELECT_ROWS)
    finally:
        await connection.close()
    findings.stored = len(rows)
    stored = {row["prediction_id"]: row for row in rows}
    findings.wrong += [f"row {key} is not whole: {dict(row)}" for key, row in stored.items() if not is_whole(row)]
    findings.wrong += [
        f"row {key} is not as answered: {said}, {stored.get(key)}"
        for key, said in findings.said.items()
        if key not in stored or not is_same(stored[key], said)
    ]


COUNT_STORED = "SELECT count(*) FROM prediction_log WHERE prediction_id = ANY($1::uuid[])"
SELECT_ROWS = (
    "SELECT prediction_id, model_name, predicted_class, score, probabilities, features, external_id FROM prediction_log"
)


def is_whole(row: asyncpg.Record) -> bool:
    """Tell whether a row has every feature, and probabilities that are some."""
    chances = row["probabilities"]
    names = NAMES[row["model_name"]]
    return (
        sorted(json.loads(row["features"])) == sorted(names)
        and len(chances) == 2
        and math.isclose(sum(chances), 1, abs_tol=1e-4)
        and row["predicted_class"] in ("0", "1")
        and row["score"] == chances[1]
    )


def is_same(row: asyncpg.Record, said: Said) -> bool:
    """Tell whether a row holds what was answered and, where that is known, what was sent."""
    answered = (
        said.model,
        str(said.prediction),
        np.float32(said.score),
        [np.float32(one) for one in said.probabilities],
    )
    probabilities = [np.float32(one) for one in row["probabilities"]]
    if answered != (row["model_name"], row["predicted_class"], np.float32(row["score"]), probabilities):
        return False
    if said.sent is None:
        return True
    names = NAMES[said.model]
    sent = said.sent if isinstance(said.sent, dict) else dict(zip(names, said.sent, strict=True))
    return bool(json.loads(row["features"], parse_int=float) == sent and row["external_id"] == said.external_id)
