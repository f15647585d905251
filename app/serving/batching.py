"""Waiting requests become one run: a batch forms while the previous one runs, a lone request runs at once."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from app.errors import InvalidRequestError, UnavailableError
from app.serving.model import Float32, Model, Scores

logger = logging.getLogger(__name__)

INLINE_SECONDS = 0.0005
"""A run predicted to be shorter blocks the event loop instead of visiting the thread, which costs about 0.1 ms."""

MAX_WAITING_ROWS = 50_000
"""Rows that may wait for a run; beyond, requests are refused rather than answered too late."""

MAX_RUN_ROWS = 4_096
"""Requests join a run up to this many rows, so that one run stays short; one larger request runs alone."""


class ScoringError(InvalidRequestError):
    """The graph fails on the rows of this request, by themselves."""


class OverloadedError(UnavailableError):
    """More rows wait than the model can score soon."""


@dataclass(slots=True)
class _Waiting:
    features: Float32
    answer: "asyncio.Future[Scores]"


class Batcher:
    """Scores requests for one model. Full (MAX_WAITING_ROWS): OverloadedError at once."""

    def __init__(self, model: Model, executor: ThreadPoolExecutor) -> None:
        self._model = model
        self._executor = executor
        self._waiting: list[_Waiting] = []
        self._waiting_rows = 0
        self._running = False

    async def score(self, features: Float32) -> Scores:
        """Score float32 (n, n_features) together with whatever else waits now."""
        if self._waiting and self._waiting_rows + len(features) > MAX_WAITING_ROWS:
            raise OverloadedError("too many rows wait to be scored")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(features, loop.create_future())
        self._waiting.append(waiting)
        self._waiting_rows += len(features)
        if not self._running:
            self._running = True
            loop.call_soon(self._run_next)  # after every request that the same poll of the loop has delivered
        return await waiting.answer

    def _run_next(self) -> None:
        batch = self._take_batch()
        if not batch:
            self._running = False
            return
        rows = sum(len(waiting.features) for waiting in batch)
        loop = asyncio.get_running_loop()
        if self._model.predict_seconds(rows) < INLINE_SECONDS:
            self._finish(batch, _score_batch(self._model, batch))
        else:
            run = loop.run_in_executor(self._executor, _score_batch, self._model, batch)
            run.add_done_callback(lambda done: self._finish(batch, done.result()))

    def _take_batch(self) -> list[_Waiting]:
        """Take the oldest requests, at least one, without those whose client has gone."""
        batch: list[_Waiting] = []
        rows = taken = 0
        for waiting in self._waiting:
            if batch and rows + len(waiting.features) > MAX_RUN_ROWS:
                break
            taken += 1
            self._waiting_rows -= len(waiting.features)
            if not waiting.answer.done():
                batch.append(waiting)
                rows += len(waiting.features)
        del self._waiting[:taken]
        return batch

    def _finish(self, batch: list[_Waiting], answers: list[Scores | Exception]) -> None:
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._run_next)
        else:
            self._running = False


def _score_batch(model: Model, batch: list[_Waiting]) -> list[Scores | Exception]:
    """Run all requests as one; when that fails, each by itself, so that only the one at fault fails."""
    try:
        if len(batch) == 1:
            return [model.score(batch[0].features)]
        scores = model.score(np.concatenate([waiting.features for waiting in batch]))
    except Exception as error:  # onnxruntime's errors share no class below this one
        if len(batch) > 1:
            return [_score_batch(model, [waiting])[0] for waiting in batch]
        logger.warning("model %s version %s failed on a request: %s", model.name, model.version, error)
        return [ScoringError("the model fails on this input")]
    parts: list[Scores | Exception] = []
    start = 0
    for waiting in batch:
        parts.append(scores.rows(start, start + len(waiting.features)))
        start += len(waiting.features)
    return parts


@asynccontextmanager
async def open_batchers(models: list[Model]) -> AsyncIterator[dict[Model, Batcher]]:
    """Give each model a batcher; all share one thread for the runs that would hold up the event loop."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxruntime")
    try:
        yield {model: Batcher(model, executor) for model in models}
    finally:
        executor.shutdown(wait=True)
