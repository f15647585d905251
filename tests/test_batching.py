"""Batching with a real model: what joins a run, who gets which rows, and what a fault or a full queue does."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from app.errors import UnavailableError
from app.serving.batching import (
    INLINE_SECONDS,
    MAX_BATCH_SECONDS,
    MAX_JOINED_ROWS,
    MAX_WAITING_ROWS,
    MAX_WAITING_SECONDS,
    OverloadedError,
    open_executor,
)
from app.serving.model import Model, Scores
from app.serving.probabilities import Float32
from tests.support.batchers import ScoringBatcher
from tests.support.onnx_models import build_echo, build_fragile, build_slow
from tests.support.processes import WAIT_SECONDS

LABELS = {"model": "metered", "model_version": "1"}
INLINE, IN_THREAD = 0.0, 1.0
"""Predicted times of a run, in seconds, that choose the event loop or the thread."""


class WatchedModel(Model):
    """A real model that notes the rows of its runs; its time is predicted as told, and runs can be held back."""

    def __init__(self, content: bytes, seconds: float) -> None:
        super().__init__("watched", "1", content)
        self._seconds_per_run, self._seconds_per_row = seconds, 0.0
        self.runs: list[int] = []
        self.started, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def score(self, *arrays: NDArray[Any]) -> Scores:
        self.runs.append(len(arrays[0]))
        self.started.set()
        assert self.gate.wait(timeout=WAIT_SECONDS), "the run was held back too long"
        return super().score(*arrays)


@pytest.fixture
async def executor() -> AsyncIterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


UNIT = 2.0**-18
"""How far the features of a row lie from the next row's: float32 holds each of 100,000 rows exactly."""

REFUSED_ROW: Float32 = np.array([[99, 0]], np.float32)


def make_rows(count: int, first: float = 0.0) -> Float32:
    """Make rows float32 (count, 2), no two of them alike for different `first`."""
    column = (first + np.arange(count, dtype=np.float32)) * UNIT
    return np.stack([1 - column, column], axis=1).astype(np.float32)


async def submit(batcher: ScoringBatcher, *requests: Float32) -> "list[asyncio.Task[Scores]]":
    """Start scoring these requests, as if they had arrived in one poll of the loop."""
    tasks = [asyncio.create_task(batcher.score(features)) for features in requests]
    await asyncio.sleep(0)  # each has run up to its place in the queue
    return tasks


async def wait_until_held(model: WatchedModel) -> None:
    """Wait until a run is in the thread, held back by the closed gate."""
    assert await asyncio.to_thread(model.started.wait, WAIT_SECONDS)


@pytest.mark.parametrize("seconds", [INLINE, IN_THREAD], ids=["inline", "thread"])
async def test_requests_become_one_run_when_they_arrive_together(executor: ThreadPoolExecutor, seconds: float) -> None:
    model = WatchedModel(build_echo(2), seconds)
    batcher = ScoringBatcher(model, executor)

    await asyncio.gather(*(batcher.score(make_rows(1, index)) for index in range(20)))

    assert model.runs == [20]


@pytest.mark.parametrize("seconds", [INLINE, IN_THREAD], ids=["inline", "thread"])
async def test_each_request_gets_its_rows_when_sizes_differ(executor: ThreadPoolExecutor, seconds: float) -> None:
    model = WatchedModel(build_echo(2), seconds)
    batcher = ScoringBatcher(model, executor)
    requests = [make_rows(size, 100.0 * index) for index, size in enumerate([1, 7, 2, 1, 30])]

    answers = await asyncio.gather(*(batcher.score(features) for features in requests))

    assert model.runs == [41]
    for features, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(answer.probabilities, features)
        np.testing.assert_array_equal(answer.predicted, features.argmax(axis=1))
        np.testing.assert_array_equal(answer.scores, features[:, 1])


async def test_metric_counts_one_run_when_requests_arrive_together(executor: ThreadPoolExecutor) -> None:
    batcher = ScoringBatcher(Model("metered", "1", build_echo(2)), executor)

    await asyncio.gather(*(batcher.score(make_rows(3)) for _ in range(4)))

    assert REGISTRY.get_sample_value("inference_batch_rows_count", LABELS) == 1
    assert REGISTRY.get_sample_value("inference_batch_rows_sum", LABELS) == 12
    assert REGISTRY.get_sample_value("inference_seconds_count", LABELS) == 1


async def test_lone_request_runs_at_once(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), INLINE)
    (task,) = await submit(ScoringBatcher(model, executor), make_rows(1))

    await asyncio.sleep(0)  # the turn of the loop in which it runs: no timer, no thread

    assert model.runs == [1]
    await task


async def test_requests_run_one_by_one_when_they_arrive_one_by_one(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), INLINE)
    batcher = ScoringBatcher(model, executor)

    for index in range(3):
        await batcher.score(make_rows(1, index))

    assert model.runs == [1, 1, 1]


async def test_runs_stay_short_when_many_rows_wait(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), INLINE)
    batcher = ScoringBatcher(model, executor)

    await asyncio.gather(*(batcher.score(make_rows(size)) for size in [3000, 1096, 1, MAX_JOINED_ROWS + 1, 5]))

    assert model.runs == [MAX_JOINED_ROWS, 1, MAX_JOINED_ROWS + 1, 5]


async def test_others_are_answered_when_a_waiter_is_cancelled_before_the_run(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), INLINE)
    first, second, third = await submit(ScoringBatcher(model, executor), *(make_rows(1, index) for index in range(3)))

    second.cancel()
    answers = await asyncio.gather(first, third)

    assert [answer.scores.tolist() for answer in answers] == [[0.0], [2 * UNIT]]
    assert model.runs == [2]


async def test_others_are_answered_when_a_waiter_is_cancelled_during_the_run(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), IN_THREAD)
    model.gate.clear()
    first, second, third = await submit(ScoringBatcher(model, executor), *(make_rows(1, index) for index in range(3)))
    await wait_until_held(model)

    second.cancel()
    model.gate.set()
    answers = await asyncio.gather(first, third)

    assert [answer.scores.tolist() for answer in answers] == [[0.0], [2 * UNIT]]


async def test_cancelled_request_is_not_run_when_it_only_waited(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), IN_THREAD)
    model.gate.clear()
    batcher = ScoringBatcher(model, executor)
    (running,) = await submit(batcher, make_rows(1))
    await wait_until_held(model)
    (waiting,) = await submit(batcher, make_rows(2))

    waiting.cancel()
    await asyncio.wait([waiting])
    model.gate.set()
    await running
    await batcher.score(make_rows(5))

    assert model.runs == [1, 5]


async def test_only_the_request_at_fault_fails_when_its_width_is_wrong(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), INLINE)
    tasks = await submit(
        ScoringBatcher(model, executor), make_rows(1, 1), np.zeros((1, 3), np.float32), make_rows(2, 5)
    )

    first, wrong, last = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(wrong, Exception)
    assert isinstance(first, Scores)
    assert isinstance(last, Scores)
    assert (first.scores.tolist(), last.scores.tolist()) == ([UNIT], [5 * UNIT, 6 * UNIT])


@pytest.mark.parametrize("seconds", [INLINE, IN_THREAD], ids=["inline", "thread"])
async def test_only_the_request_at_fault_fails_when_the_graph_refuses_its_row(
    executor: ThreadPoolExecutor, seconds: float
) -> None:
    model = WatchedModel(build_fragile(), seconds)
    tasks = await submit(ScoringBatcher(model, executor), make_rows(1, 1), REFUSED_ROW, make_rows(1, 2))

    first, refused, last = await asyncio.gather(*tasks, return_exceptions=True)

    assert isinstance(refused, Exception)
    assert isinstance(first, Scores)
    assert isinstance(last, Scores)
    assert (first.scores.tolist(), last.scores.tolist()) == ([UNIT], [2 * UNIT])


async def test_next_request_is_answered_when_the_run_before_it_failed(executor: ThreadPoolExecutor) -> None:
    batcher = ScoringBatcher(WatchedModel(build_fragile(), INLINE), executor)
    await asyncio.gather(*await submit(batcher, REFUSED_ROW), return_exceptions=True)

    answer = await batcher.score(make_rows(1, 3))

    assert answer.scores.tolist() == [3 * UNIT]


async def test_request_is_refused_when_too_many_rows_wait(executor: ThreadPoolExecutor) -> None:
    batcher = ScoringBatcher(WatchedModel(build_echo(2), INLINE), executor)
    waiting = await submit(batcher, *[make_rows(MAX_WAITING_ROWS // 10)] * 10)

    with pytest.raises(OverloadedError) as refusal:
        await batcher.score(make_rows(1))

    assert isinstance(refusal.value, UnavailableError)
    assert (refusal.value.status, refusal.value.headers["Retry-After"]) == (503, "1")
    assert [len(answer.scores) for answer in await asyncio.gather(*waiting)] == [MAX_WAITING_ROWS // 10] * 10


async def test_batch_is_no_longer_than_predicted_work_allows(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), IN_THREAD)
    model._seconds_per_run, model._seconds_per_row = 0.0, MAX_BATCH_SECONDS / 9
    model.gate.clear()
    batcher = ScoringBatcher(model, executor)
    first = await submit(batcher, make_rows(1))
    await wait_until_held(model)

    waiting = await submit(batcher, *[make_rows(2)] * 10, make_rows(30))
    model.gate.set()
    await asyncio.gather(*first, *waiting)

    assert model.runs == [1, 8, 8, 4, 30]


async def test_request_is_refused_when_more_work_waits_than_a_second(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), INLINE)
    model._seconds_per_row = MAX_WAITING_SECONDS / 100
    model.gate.clear()
    batcher = ScoringBatcher(model, executor)
    first = await submit(batcher, make_rows(1))
    await wait_until_held(model)
    waiting = await submit(batcher, *[make_rows(1)] * 100)

    with pytest.raises(OverloadedError):
        await batcher.score(make_rows(1))

    model.gate.set()
    assert len(await asyncio.gather(*first, *waiting)) == 101


async def test_less_work_may_wait_when_it_takes_longer_than_predicted(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), IN_THREAD)
    model._seconds_per_run, model._seconds_per_row = 0.0, MAX_WAITING_SECONDS / 100
    batcher = ScoringBatcher(model, executor)
    model.gate.clear()
    first = await submit(batcher, make_rows(1))
    await asyncio.to_thread(model.gate.wait, MAX_WAITING_SECONDS / 5)  # which passes, as the gate is closed
    model.gate.set()
    await asyncio.gather(*first)
    model.gate.clear()
    model.started.clear()
    running = await submit(batcher, make_rows(1))
    await wait_until_held(model)
    waiting = await submit(batcher, make_rows(19))  # a fifth of what may wait, but for what the first has taken

    with pytest.raises(OverloadedError):
        await batcher.score(make_rows(1))

    model.gate.set()
    await asyncio.gather(*running, *waiting)


async def test_requests_are_taken_again_when_the_queue_has_drained(executor: ThreadPoolExecutor) -> None:
    batcher = ScoringBatcher(WatchedModel(build_echo(2), INLINE), executor)

    for _ in range(3):
        tasks = await submit(batcher, *[make_rows(MAX_WAITING_ROWS // 2)] * 2)
        tasks[0].cancel()
        await tasks[1]

    assert len((await batcher.score(make_rows(1))).scores) == 1


async def test_request_is_taken_when_it_alone_exceeds_the_bound(executor: ThreadPoolExecutor) -> None:
    batcher = ScoringBatcher(WatchedModel(build_echo(2), INLINE), executor)

    answer = await batcher.score(make_rows(100_000))  # what MAX_BATCH_ROWS may be set to

    assert len(answer.scores) == 100_000


async def test_a_batch_forms_when_a_run_is_under_way(executor: ThreadPoolExecutor) -> None:
    model = WatchedModel(build_echo(2), IN_THREAD)
    model.gate.clear()
    batcher = ScoringBatcher(model, executor)
    first = await submit(batcher, make_rows(1))
    await wait_until_held(model)

    later = await submit(batcher, *(make_rows(1, index) for index in range(1, 11)))
    model.gate.set()
    answers = await asyncio.gather(*first, *later)

    assert model.runs == [1, 10]
    assert [answer.scores.tolist() for answer in answers] == [[index * UNIT] for index in range(11)]


async def test_event_loop_turns_when_a_slow_model_runs(executor: ThreadPoolExecutor) -> None:
    model = Model("slow", "1", build_slow())
    (task,) = await submit(ScoringBatcher(model, executor), make_rows(64))

    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1

    assert model.predict_seconds(64) > INLINE_SECONDS
    assert turns > 20  # a run on the loop is over after three
    np.testing.assert_array_equal((await task).probabilities, make_rows(64))


async def test_no_thread_is_left_when_the_executor_closes() -> None:
    models: list[Model] = [WatchedModel(build_echo(2), IN_THREAD), WatchedModel(build_echo(2), IN_THREAD)]

    async with open_executor() as executor:
        batchers = [ScoringBatcher(model, executor) for model in models]
        answers = await asyncio.gather(*(batcher.score(make_rows(1, 4)) for batcher in batchers))

    assert [answer.scores.tolist() for answer in answers] == [[4 * UNIT], [4 * UNIT]]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("onnxruntime")]
