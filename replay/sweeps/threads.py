"""Runs of a sweep side by side in threads of this process: kernels run without Python's lock."""

import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from replay.sweeps.outcomes import Outcome, Task, do
from replay.sweeps.traces import Input, SharedTraces


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """An engine: does tasks, and yields outcomes as they come."""

    def __init__(self, jobs: int | None = None) -> None:
        self.jobs = jobs or processors()
        self._traces = SharedTraces()

    def keep(self, inputs: Sequence[Input]) -> None:
        self._traces.expect(inputs)

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Leaving the iteration ends the runs under way at their next batch."""
        traces = self._traces
        traces.expect(task.input for task in tasks)
        given_up = threading.Event()

        def work(task: Task) -> Outcome:
            try:
                return do(task, traces.get, given_up.is_set)
            finally:
                traces.release(task.input)

        pool = ThreadPoolExecutor(self.jobs, thread_name_prefix="sweep")
        order = {pool.submit(work, task): number for number, task in enumerate(tasks)}
        waiting: set[Future[Outcome]] = set(order)
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in sorted(done, key=order.__getitem__):
                    yield future.result()
        finally:
            given_up.set()
            pool.shutdown(cancel_futures=True)
