"""Score waiting requests in batches: a batch forms while the previous one runs, a lone request runs at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from app.errors import UnavailableError

INLINE_SECONDS = 0.0005
"""Work that is predicted to be shorter runs on the event loop; the way to the thread and back costs about 0.1 ms."""

MAX_WAITING_ROWS = 50_000
"""Most rows that wait; above it, requests are refused, because waiting rows take memory."""

MAX_WAITING_VALUES = 2_000_000
"""The same in values, for rows of many features or classes."""

MAX_WAITING_SECONDS = 1.0
"""Most work that waits; above it, requests are refused at once, because clients give up before they are answered."""

MAX_JOINED_ROWS = 4_096
"""Most rows in a batch of several requests; a larger request is a batch of its own."""

MAX_BATCH_SECONDS = 0.1
"""A batch may take this much longer than a single row: the next requests wait for the whole batch, and large arrays
do not fit into the CPU's caches."""

PACE_MEMORY = 0.9
"""Weight of a batch's time relative to the next one's: about the last ten batches count."""


class OverloadedError(UnavailableError):
    """Too many rows wait to be scored soon."""


class Job(Protocol):
    """A request that waits for the answer that `deliver` gives it."""

    @property
    def rows(self) -> int:
        """The number of the request's rows, at least one."""

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has gone, so that nobody waits for the answer."""

    def fail(self, error: Exception) -> None:
        """Answer the request with an error; do nothing when it is answered already."""


J = TypeVar("J", bound=Job)
R = TypeVar("R")


class Batcher(Generic[J, R]):
    """Collects jobs, does `work` on a batch of them and delivers the results. Raises OverloadedError when full.

    `work` only computes. It runs on the event loop or in the thread, depending on `predict_seconds(rows)`; when it
    fails on a batch, it runs again on each job. The next batch forms until the last one is delivered: its rows could
    not be stored sooner, and larger batches cost less per row. A row has `row_values` values.
    """

    def __init__(
        self,
        work: Callable[[list[J]], R],
        predict_seconds: Callable[[int], float],
        deliver: Callable[[list[J], R], Awaitable[None]],
        executor: ThreadPoolExecutor,
        row_values: int = 1,
    ) -> None:
        self._work = work
        self._predict_seconds = predict_seconds
        self._deliver = deliver
        self._executor = executor
        self._max_waiting_rows = min(MAX_WAITING_ROWS, MAX_WAITING_VALUES // row_values)
        self._batch_rows = _find_batch_rows(predict_seconds)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[J] = []
        self._waiting_rows = 0
        self._running = False
        self._pace = Pace()
        self._delivery: asyncio.Task[None] | None = None

    def submit(self, job: J) -> None:
        """Add `job` to the jobs that wait; raise OverloadedError when too many rows wait."""
        rows = self._waiting_rows + job.rows
        if self._waiting and (
            rows > self._max_waiting_rows or self._pace.correct(self._predict_seconds(rows)) > MAX_WAITING_SECONDS
        ):
            raise OverloadedError("too many rows wait to be scored")
        self._waiting.append(job)
        self._waiting_rows = rows
        if not self._running:
            self._running = True
            # call_soon lets the requests that the loop has received in the same turn join the batch.
            self._loop.call_soon(self._run_next)

    def _run_next(self) -> None:
        batch = self._take_batch()
        if not batch:
            self._running = False
            return
        predicted = self._predict_seconds(sum([job.rows for job in batch]))
        self._pace.begin(predicted)
        if predicted < INLINE_SECONDS:
            self._hand_over(self._do_work(batch))
        else:
            done = self._loop.run_in_executor(self._executor, self._do_work, batch)
            done.add_done_callback(lambda done: self._hand_over(done.result()))

    def _take_batch(self) -> list[J]:
        """Take the oldest jobs, as many as fit into a batch and at least one; drop abandoned jobs."""
        batch: list[J] = []
        rows = taken = 0
        for job in self._waiting:
            if batch and rows + job.rows > self._batch_rows:
                break
            taken += 1
            self._waiting_rows -= job.rows
            if not job.is_abandoned:
                batch.append(job)
                rows += job.rows
        del self._waiting[:taken]
        return batch

    def _do_work(self, batch: list[J]) -> list[tuple[list[J], R | Exception]]:
        """Work on the whole batch; when that fails, on each job alone, so that only the faulty job fails."""
        try:
            return [(batch, self._work(batch))]
        except Exception as error:  # a model's run may raise anything, and must fail only its own job
            if len(batch) > 1:
                return [self._do_work([job])[0] for job in batch]
            return [(batch, error)]

    def _hand_over(self, outcomes: list[tuple[list[J], R | Exception]]) -> None:
        self._pace.end()
        self._delivery = self._loop.create_task(self._deliver_all(outcomes))
        self._delivery.add_done_callback(lambda _: self._run_next())

    async def _deliver_all(self, outcomes: list[tuple[list[J], R | Exception]]) -> None:
        """Deliver the results; answer every job of a failed batch with the error."""
        for jobs, outcome in outcomes:
            error = outcome if isinstance(outcome, Exception) else await self._try_deliver(jobs, outcome)
            if error is not None:
                for job in jobs:
                    job.fail(error)

    async def _try_deliver(self, jobs: list[J], result: R) -> Exception | None:
        try:
            await self._deliver(jobs, result)
        except Exception as error:  # the log failed, or there is a bug: each job is answered with the error
            return error
        return None


def _find_batch_rows(predict_seconds: Callable[[int], float]) -> int:
    """Return the most rows of a batch of several requests, from MAX_JOINED_ROWS and MAX_BATCH_SECONDS."""
    rows = MAX_JOINED_ROWS
    while rows > 1 and predict_seconds(rows) - predict_seconds(1) > MAX_BATCH_SECONDS:
        rows //= 2
    return rows


class Pace:
    """How much longer than predicted the last batches took, which happens on a busy machine."""

    def __init__(self) -> None:
        self._began = 0.0
        self._predicted_seconds = 1e-9
        self._taken_seconds = 0.0

    def begin(self, predicted_seconds: float) -> None:
        """Note that work begins, and its predicted time."""
        self._began = time.perf_counter()
        self._predicted_seconds = PACE_MEMORY * self._predicted_seconds + predicted_seconds

    def end(self) -> None:
        """Note that the work has ended."""
        self._taken_seconds = PACE_MEMORY * self._taken_seconds + time.perf_counter() - self._began

    def correct(self, predicted_seconds: float) -> float:
        """Return a prediction corrected by the last batches, never less than given."""
        return predicted_seconds * max(1.0, self._taken_seconds / self._predicted_seconds)


@asynccontextmanager
async def open_executor() -> AsyncIterator[ThreadPoolExecutor]:
    """Open the one thread for work that would block the event loop."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxruntime")
    try:
        yield executor
    finally:
        executor.shutdown(wait=True)
