"""A batcher for tests whose answers are scores: nothing is logged."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from app.serving.batching import Batcher
from app.serving.model import Model, Scores
from app.serving.probabilities import Float32


@dataclass
class ScoreJob:
    """Rows to be scored, float32 (n, n_features), and their scores to come."""

    features: Float32
    answer: "asyncio.Future[Scores]"

    @property
    def rows(self) -> int:
        return len(self.features)

    @property
    def is_abandoned(self) -> bool:
        return self.answer.cancelled()

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class ScoringBatcher:
    """A batcher whose work is a run of a model, and whose answers are each request's rows of the scores."""

    def __init__(self, model: Model, executor: ThreadPoolExecutor) -> None:
        self._batcher = make_score_batcher(model, executor)

    async def score(self, features: Float32) -> Scores:
        job = ScoreJob(features, asyncio.get_running_loop().create_future())
        self._batcher.submit(job)
        return await job.answer


def make_score_batcher(model: Model, executor: ThreadPoolExecutor) -> Batcher[ScoreJob, Scores]:
    """Make the batcher alone."""
    return Batcher(
        work=lambda jobs: model.score(np.concatenate([job.features for job in jobs])),
        predict_seconds=model.predict_seconds,
        deliver=deliver_scores,
        executor=executor,
    )


async def deliver_scores(jobs: list[ScoreJob], scores: Scores) -> None:
    start = 0
    for job in jobs:
        part = slice(start, start + job.rows)
        start += job.rows
        if not job.answer.done():
            job.answer.set_result(Scores(scores.probabilities[part], scores.predicted[part], scores.scores[part]))
