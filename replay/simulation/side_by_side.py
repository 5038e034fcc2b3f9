"""Simulates one trace with several stacks at the same time, in threads. The trace is read once."""

from _thread import start_new_thread
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from replay.simulation.result import RunResult
from replay.support.errors import ReplayError
from replay.trace import Trace
from replay.trace.read_ahead import ReadingEnded, read_ahead

Simulation = Callable[[Trace, Callable[[int], None]], RunResult]
"""Simulates the trace that it is passed, and calls the function after each slice: `progress` of `run`."""


def run_side_by_side(
    trace: Trace, first: Simulation, others: Sequence[Simulation], before_others: Callable[[], Any] = lambda: None
) -> tuple[RunResult, list[RunResult | ReplayError]]:
    """Returns the result of the first simulation, which runs in the calling thread, and those of the others.

    A ReplayError of another simulation is its result; the first one raises its own. The others start after the first
    slice of the first one, so that it alone compiles what they share; `before_others` is called right before.
    """
    with _Threads() as threads, read_ahead(trace, 1 + len(others)) as (own, *shared):

        def begin_others(_rows: int = 0) -> None:
            if not threads.results:
                before_others()
                for simulation, view in zip(others, shared, strict=True):
                    threads.start(simulation, view)

        result = first(own, begin_others)
        begin_others()
        return result, threads.finish()


class _Threads:
    """Threads that simulate. They end with the block, at the latest after their current slice or batch.

    They synchronize with queues in C only, as in `replay.trace.read_ahead`.
    """

    def __init__(self) -> None:
        self.results: list[SimpleQueue[RunResult | BaseException]] = []
        """The result of each thread that was started."""
        self._is_stopped = False
        self._ended: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> "_Threads":
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_stopped = True
        for _result in self.results:
            self._ended.get()

    def start(self, simulation: Simulation, trace: Trace) -> None:
        """Starts a thread."""
        finished: SimpleQueue[RunResult | BaseException] = SimpleQueue()

        def simulate() -> None:
            try:
                finished.put(simulation(trace, self._go_on))
            except BaseException as error:  # `finish` raises it
                finished.put(error)
            finally:
                self._ended.put(None)

        start_new_thread(simulate, ())
        self.results.append(finished)

    def _go_on(self, _rows: int) -> None:
        """Ends the simulation of this thread if the block has ended."""
        if self._is_stopped:
            raise ReadingEnded

    def finish(self) -> list[RunResult | ReplayError]:
        """Waits for all threads, and returns their results."""
        results: list[RunResult | ReplayError] = []
        for finished in self.results:
            result = finished.get()
            if isinstance(result, BaseException) and not isinstance(result, ReplayError):
                raise result
            results.append(result)
        return results
