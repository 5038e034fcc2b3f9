"""Runs of a sweep side by side in threads of this process: kernels run without Python's lock."""

import os
from collections.abc import Generator, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Thread

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
        """Leaving the iteration ends the runs under way at their next batch.

        Between threads are only queues in C. An interrupt can leave a lock of `threading` or of a future taken, by
        which the others would wait for ever.
        """
        traces = self._traces
        traces.expect(task.input for task in tasks)
        left: SimpleQueue[Task] = SimpleQueue()
        for task in tasks:
            left.put(task)
        come: SimpleQueue[Outcome | BaseException] = SimpleQueue()
        given_up = Event()

        def work() -> None:
            while not given_up.is_set():
                try:
                    task = left.get_nowait()
                except Empty:
                    return
                try:
                    come.put(do(task, traces.get, given_up.is_set))
                except BaseException as error:  # whatever it is, who waits for the outcome has it
                    come.put(error)
                finally:
                    traces.release(task.input)

        threads = [Thread(target=work, name=f"sweep_{number}") for number in range(min(self.jobs, len(tasks)))]
        try:
            for thread in threads:
                thread.start()
            for _ in tasks:
                outcome = come.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            given_up.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join()
