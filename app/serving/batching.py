"""Waiting requests become one batch: it forms while the previous one is worked on, a lone request goes at once."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

from app.errors import UnavailableError

INLINE_SECONDS = 0.0005
"""Work predicted to be shorter blocks the event loop instead of visiting the thread, which costs about 0.1 ms."""

MAX_WAITING_ROWS = 50_000
"""Rows that may wait; beyond, requests are refused: what waits takes memory."""

MAX_WAITING_SECONDS = 1.0
"""Work that may wait; beyond, requests are refused at once rather than answered when their client has given up."""

MAX_JOINED_ROWS = 4_096
"""Requests join a batch up to this many rows; one larger request goes alone."""

MAX_BATCH_SECONDS = 0.1
"""Nor do they join a batch that takes so much longer than a lone row: who comes next waits for all of it, and large
arrays leave the caches."""

PACE_MEMORY = 0.9
"""Weight of a batch against the next one: about ten are remembered."""


class OverloadedError(UnavailableError):
    """More rows wait than can be scored soon."""


class Job(Protocol):
    """A request on its way to its answer, which `deliver` gives it."""

    @property
    def rows(self) -> int:
        """Rows of the request, at least one."""

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for its answer any more."""

    def fail(self, error: Exception) -> None:
        """Answer an error; without effect when it is answered already."""


J = TypeVar("J", bound=Job)
R = TypeVar("R")


class Batcher(Generic[J, R]):
    """Takes jobs, does `work` on a batch of them, and has the results delivered. Full: OverloadedError at once.

    `work` is plain computation, on the loop or in the thread, by what `predict_seconds(rows)` says of its length;
    a batch it fails on is worked on job by job. The next batch forms until the last one is delivered: its rows could
    not be promised sooner, and larger batches cost less per row.
    """

    def __init__(
        self,
        work: Callable[[list[J]], R],
        predict_seconds: Callable[[int], float],
        deliver: Callable[[list[J], R], Awaitable[None]],
        executor: ThreadPoolExecutor,
    ) -> None:
        self._work = work
        self._predict_seconds = predict_seconds
        self._deliver = deliver
        self._executor = executor
        self._batch_rows = find_batch_rows(predict_seconds)
        self._loop = asyncio.get_running_loop()
        self._waiting: list[J] = []
        self._waiting_rows = 0
        self._running = False
        self._pace = Pace()
        self._delivery: asyncio.Task[None] | None = None

    def submit(self, job: J) -> None:
        """Have `job` done together with whatever else waits now; its answer is to be awaited."""
        rows = self._waiting_rows + job.rows
        if self._waiting and (
            rows > MAX_WAITING_ROWS or self._pace.correct(self._predict_seconds(rows)) > MAX_WAITING_SECONDS
        ):
            raise OverloadedError("too many rows wait to be scored")
        self._waiting.append(job)
        self._waiting_rows = rows
        if not self._running:
            self._running = True
            # After every request that the same poll of the loop has delivered.
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
        """Take the oldest jobs, at least one, without those whose client has gone."""
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
        """Work on all together; when that fails, on each by itself, so that only the job at fault fails."""
        try:
            return [(batch, self._work(batch))]
        except Exception as error:  # whatever a model's run raises, it must not reach the other jobs
            if len(batch) > 1:
                return [self._do_work([job])[0] for job in batch]
            return [(batch, error)]

    def _hand_over(self, outcomes: list[tuple[list[J], R | Exception]]) -> None:
        self._pace.end()
        self._delivery = self._loop.create_task(self._deliver_all(outcomes))
        self._delivery.add_done_callback(lambda _: self._run_next())

    async def _deliver_all(self, outcomes: list[tuple[list[J], R | Exception]]) -> None:
        """Deliver; whatever goes wrong, nobody is left waiting: each job is failed with the error."""
        for jobs, outcome in outcomes:
            error = outcome if isinstance(outcome, Exception) else await self._try_deliver(jobs, outcome)
            if error is not None:
                for job in jobs:
                    job.fail(error)

    async def _try_deliver(self, jobs: list[J], result: R) -> Exception | None:
        try:
            await self._deliver(jobs, result)
        except Exception as error:  # of the log, or a bug: each job answers it
            return error
        return None


def find_batch_rows(predict_seconds: Callable[[int], float]) -> int:
    """Return how many rows are joined into one batch."""
    rows = MAX_JOINED_ROWS
    while rows > 1 and predict_seconds(rows) - predict_seconds(1) > MAX_BATCH_SECONDS:
        rows //= 2
    return rows


class Pace:
    """How much longer work takes than predicted, over the last batches: the machine may be busy with other things."""

    def __init__(self) -> None:
        self._began = 0.0
        self._predicted_seconds = 1e-9
        self._taken_seconds = 0.0

    def begin(self, predicted_seconds: float) -> None:
        """Note that work begins, and how long it should take."""
        self._began = time.perf_counter()
        self._predicted_seconds = PACE_MEMORY * self._predicted_seconds + predicted_seconds

    def end(self) -> None:
        """Note that it has ended."""
        self._taken_seconds = PACE_MEMORY * self._taken_seconds + time.perf_counter() - self._began

    def correct(self, predicted_seconds: float) -> float:
        """Return how long work will take that should take so long, never less."""
        return predicted_seconds * max(1.0, self._taken_seconds / self._predicted_seconds)


@asynccontextmanager
async def open_executor() -> AsyncIterator[ThreadPoolExecutor]:
    """Open the one thread for work that would hold up the event loop."""
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="onnxruntime")
    try:
        yield executor
    finally:
        executor.shutdown(wait=True)
