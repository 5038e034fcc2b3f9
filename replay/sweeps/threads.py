"""An engine that runs the tasks of a sweep in threads of this process. Kernels run without the GIL."""

import os
from _thread import start_new_thread
from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue

from replay.support.errors import ReplayError
from replay.sweeps.outcomes import Outcome, Task, do
from replay.sweeps.traces import Input, SharedTraces


def processors() -> int:
    """Returns the number of processors that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Threads:
    """The engine: does tasks and yields outcomes in the order of completion."""

    def __init__(self, jobs: int | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise ReplayError(f"{jobs} threads: a sweep requires at least 1")
        self.jobs = jobs or processors()
        self._traces = SharedTraces()

    def keep(self, inputs: Sequence[Input]) -> None:
        self._traces.expect(inputs)

    def outcomes(self, tasks: Sequence[Task]) -> Generator[Outcome, None, None]:
        """Yields outcomes. The end of the iteration ends running tasks at their next batch.

        Threads synchronize only with queues in C. An interrupt can leave a lock of `threading` or of a future locked,
        and other threads would then wait forever.
        """
        traces = self._traces
        traces.expect(task.input for task in tasks)
        waiting: SimpleQueue[Task] = SimpleQueue()
        for task in tasks:
            waiting.put(task)
        finished: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        ended: SimpleQueue[None] = SimpleQueue()
        cancelled: list[bool] = []
        threads = 0

        def work() -> None:
            try:
                while not cancelled:
                    do_next(waiting.get_nowait())
            except Empty:
                pass
            finally:
                ended.put(None)

        def do_next(task: Task) -> None:
            try:
                finished.put(do(task, traces.get, lambda: bool(cancelled)))
            except BaseException as error:  # the consumer of the outcomes raises it
                finished.put(error)
            finally:
                traces.release(task.input)

        try:
            for _ in range(min(self.jobs, len(tasks))):
                start_new_thread(work, ())
                threads += 1
            for _ in tasks:
                outcome = finished.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            cancelled.append(True)
            for _ in range(threads):
                ended.get()
