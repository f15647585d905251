"""A batch of prediction requests: score it in one run, store its rows, and answer each request."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from app import metrics
from app.errors import Fault, InvalidRequestError, ModelOutputError, ScorekeeperError, invalid
from app.prediction_log.log import PredictionLog
from app.prediction_log.record import (
    VALUES_TOGETHER,
    Record,
    Rows,
    encode_records,
    make_prediction_ids,
    read_clock_ms,
    time_from_ms,
)
from app.serving.batching import Batcher
from app.serving.features import Value
from app.serving.model import Model, Scores
from app.serving.probabilities import are_probabilities, find_improper_rows
from app.web.fields import ModelClass, ModelName, ModelVersion, PredictionId
from app.web.problem import render_problem
from app.web.requests import Headers

logger = logging.getLogger(__name__)

T = TypeVar("T")

ENCODE_SECONDS_PER_ROW = 2e-6
"""Measured time to make and encode the record and the answer of one row, without its values and the model's run."""

ENCODE_SECONDS_PER_VALUE = 3e-7
"""The same for each of the row's features and probabilities."""


Answer = tuple[int, Headers, bytes]
"""Status, headers and body. The door adds the headers that all answers have, and the request id."""

OnAnswer = Callable[[Answer], None]
"""Called on the event loop with a request's answer; only the first call has an effect."""


@dataclass(slots=True)
class PredictJob:
    """One request: rows of values in the model's order, what is logged with them, and where its answer goes."""

    values: list[list[Value]]
    external_ids: Sequence[str | None]
    request_id: str
    many: bool
    on_answer: Callable[[Any], None]
    is_abandoned: bool = False
    """Whether its client has gone, so that nobody waits for the answer."""

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(self.values)

    def render(self, predictions: list["Prediction"]) -> Any:
        """Return what `on_answer` is called with when the rows are safe: for /predict an `Answer`."""
        body = _encode_many(predictions) if self.many else encode(predictions[0])
        return 200, ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))), body

    def fail(self, error: Exception) -> None:
        """Answer with this error."""
        self.on_answer(answer_error(error, self.request_id))

    def point_at(self, row: int) -> str:
        """Return the JSON pointer of this row in the request."""
        return f"/instances/{row}" if self.many else "/features"


class Prediction(msgspec.Struct, gc=False):
    """The answer for one row."""

    prediction_id: PredictionId
    prediction: ModelClass
    score: Annotated[
        float,
        Meta(
            description="Probability of the positive class; with more than two classes, of the predicted one",
            examples=[0.9],
        ),
    ]
    probabilities: Annotated[
        dict[str, float], Meta(description="Probabilities by class", examples=[{"0": 0.1, "1": 0.9}])
    ]
    model: ModelName
    model_version: ModelVersion


class Predictions(msgspec.Struct, gc=False):
    """The answer for many rows, in their order."""

    predictions: Annotated[list[Prediction], Meta(description="One for each row, in their order")]
    model: ModelName
    model_version: ModelVersion


def settle_future(answered: "asyncio.Future[T]", answer: T | Exception) -> None:
    """Give a handler's future its answer, or the error to raise; do nothing if it is done or cancelled."""
    if answered.done():
        return
    if isinstance(answer, Exception):
        answered.set_exception(answer)
    else:
        answered.set_result(answer)


def answer_error(error: Exception, request_id: str) -> Answer:
    """Return the answer to an error of POST /predict; log the error if it is a bug."""
    problem = render_problem(error, request_id)
    if not isinstance(error, ScorekeeperError):
        logger.error("POST /predict failed", exc_info=error)
    return problem.status_code, problem.raw_headers, bytes(problem.body)


@dataclass(slots=True)
class ScoredBatch:
    """Rows for the log; each job's answer, for when they are promised; and what to count then, arrays (n,)."""

    rows: list[Rows]
    answers: list[Any]
    predicted: NDArray[np.intp]
    scores: NDArray[np.float32]


encode = msgspec.json.Encoder().encode


def _encode_many(predictions: list[Prediction]) -> bytes:
    """Encode the answer for many rows; row by row when it is large, so that other threads can run in between."""
    head = predictions[0]
    if len(predictions) * len(head.probabilities) <= VALUES_TOGETHER:
        return encode(Predictions(predictions, head.model, head.model_version))
    before, _, after = encode(Predictions([], head.model, head.model_version)).partition(b"[]")
    return b"".join([before, b"[", b",".join(map(encode, predictions)), b"]", after])


def _answer_batch(model: Model, jobs: Sequence[PredictJob]) -> ScoredBatch:
    """Score the rows of all jobs in one run; encode answers and log rows, all dated by one reading of the clock."""
    scores = _run_model(model, jobs)
    clock_ms = read_clock_ms()
    created_at, ids = time_from_ms(clock_ms), iter(make_prediction_ids(clock_ms, len(scores.scores)))
    signature, name, version = model.signature, model.name, model.version
    names, texts, classes = signature.feature_names, signature.class_texts, signature.classes
    chances_of_rows = _list_rows(scores.probabilities)
    scored = zip(scores.scores.tolist(), chances_of_rows, scores.predicted.tolist(), strict=True)
    records, answers = [], []
    # The lengths below are checked before: strict=True would cost a prediction 1 % of its time.
    for job in jobs:
        predictions = []
        for values, external_id in zip(job.values, job.external_ids):  # noqa: B905
            prediction_id, (score, chances, index) = next(ids), next(scored)
            features = dict(zip(names, values))  # noqa: B905
            records.append(
                Record(
                    prediction_id,
                    created_at,
                    name,
                    version,
                    texts[index],
                    score,
                    chances,
                    features,
                    external_id,
                    job.request_id,
                )
            )
            probabilities = dict(zip(texts, chances))  # noqa: B905
            predictions.append(Prediction(prediction_id, classes[index], score, probabilities, name, version))
        answers.append(job.render(predictions))
    return ScoredBatch(encode_records(records), answers, scores.predicted, scores.scores)


def _list_rows(matrix: NDArray[np.float32]) -> Iterable[list[float]]:
    """Return the rows as lists; of a large matrix one by one, so that other threads can run in between."""
    return matrix.tolist() if matrix.size <= VALUES_TOGETHER else map(np.ndarray.tolist, matrix)


def _run_model(model: Model, jobs: Sequence[PredictJob]) -> Scores:
    """Score the rows of all jobs. Raises 422 when the input is the cause of a failure, 503 when the model is.

    The batcher then tries the jobs of the batch one by one, so that only the one at fault is refused.
    """
    rows = [row for job in jobs for row in job.values]
    try:
        scores = model.score_rows(rows)
        _check_output(model, scores, jobs)
    except InvalidRequestError as error:
        if error.__cause__ is not None:  # onnxruntime's reason, which is not shown to the client
            logger.warning(
                "model %s version %s fails on %d rows: %s", model.name, model.version, len(rows), error.__cause__
            )
        raise
    except ModelOutputError as error:
        if len(jobs) == 1:
            model.count_refused_rows(len(rows))
        logger.warning("model %s version %s: %s", model.name, model.version, error)
        raise
    return scores


def _check_output(model: Model, scores: Scores, jobs: Sequence[PredictJob]) -> None:
    """Raise 422 for rows whose probabilities are not finite numbers, 503 for rows that are no probabilities."""
    if are_probabilities(scores.probabilities):
        return
    pointers = [job.point_at(row) for job in jobs for row in range(job.rows)]
    rows = np.flatnonzero(~np.isfinite(scores.probabilities).all(axis=1)).tolist()
    if rows:
        code, detail = "non_finite_output", "the model's answer for this row is not a finite number"
        raise invalid(*(Fault(pointers[row], code, detail) for row in rows))
    rows = find_improper_rows(scores.probabilities).tolist()
    worst = scores.probabilities[rows[0]]
    found = f"values from {worst.min():g} to {worst.max():g} that sum to {worst.sum():g}, which are not probabilities"
    raise model.refuse_output("model_output_not_probabilities", found, [pointers[row] for row in rows])


def make_batcher(model: Model, log: PredictionLog, executor: ThreadPoolExecutor) -> Batcher[PredictJob, ScoredBatch]:
    """Make the batcher of one model: how a batch is scored, how long that takes, and how it is answered."""

    async def deliver(jobs: Sequence[PredictJob], answer: ScoredBatch) -> None:
        await log.store(answer.rows)
        for job, result in zip(jobs, answer.answers, strict=True):
            job.on_answer(result)
        _count_predictions(model, answer)

    encode_seconds = ENCODE_SECONDS_PER_ROW + model.signature.row_values * ENCODE_SECONDS_PER_VALUE
    metrics.begin_model_series(model.name, model.version, model.signature.class_texts)
    return Batcher(
        work=lambda jobs: _answer_batch(model, jobs),
        predict_seconds=lambda rows: model.predict_seconds(rows) + rows * encode_seconds,
        deliver=deliver,
        executor=executor,
        row_values=model.signature.row_values,
    )


def _count_predictions(model: Model, answer: ScoredBatch) -> None:
    """Count answered predictions by class, and their scores."""
    for name, rows in zip(model.signature.class_texts, np.bincount(answer.predicted).tolist(), strict=False):
        if rows:
            metrics.PREDICTIONS.add((model.name, model.version, name), rows)
    metrics.PREDICTION_SCORES.observe((model.name, model.version), answer.scores)
