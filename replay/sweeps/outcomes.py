"""One run of a sweep: does a task, in a thread or in a worker of a cluster, and returns its outcome."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from replay.analysis.metrics import metrics_of, so_far, summarize
from replay.config import rebuild_config
from replay.simulation.result import RunResult
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.support.errors import ReplayError
from replay.support.version import identity
from replay.sweeps.configurations import Configuration
from replay.sweeps.traces import Decoded, Input

Status = Literal["done", "stopped", "failed"]
Front = tuple[dict[str, float], ...]
"""Known results by objective, none of which dominates another."""


@dataclass(frozen=True)
class Task:
    """All that a run needs, on any machine."""

    key: str
    """Equal for runs with equal results."""
    input: Input
    stack: dict[str, Any]
    """A StackConfig as JSON values."""
    trim_every_ns: int | None = None
    front: Front = ()
    """The run is ended as soon as one of these results dominates it."""
    version: str = field(default_factory=identity)


@dataclass(frozen=True)
class Outcome:
    """The result of a run. All fields but `wall_ns` and `python` are the same on every machine."""

    key: str
    status: Status
    error: str | None = None
    transient: bool = False
    """Whether the machine caused the error, not the run, so a resumed sweep tries again."""
    trace_digest: str = ""
    events: int = 0
    """Simulated rows; fewer than the trace has if the run was ended early."""
    metrics: dict[str, int | float] = field(default_factory=dict)
    """For a run that was ended early: only metrics that cannot fall, with their values so far."""
    wall_ns: int = 0
    python: str = platform.python_version()

    def value(self, metric: str) -> int | float:
        """The value of an objective; a counter of a model that is not in the stack is 0."""
        return self.metrics.get(metric, 0)


def make_task(trace: Input, each: Configuration, front: Front = ()) -> Task:
    return Task(f"{trace.key}:{each.key}", trace, each.stack.model_dump(mode="json"), each.trim_every_ns, front)


def do(task: Task, get: Callable[[Input], Decoded], is_cancelled: Callable[[], bool] = lambda: False) -> Outcome:
    """Simulates the task's trace. An error in the trace or stack becomes a failed outcome with its message."""
    try:
        decoded = get(task.input)
    except (ReplayError, MemoryError, OSError) as error:  # a later attempt to read the trace can succeed
        return Outcome(task.key, "failed", error=_message(error), transient=True)
    try:
        result, stopped = _simulate(task, decoded, is_cancelled)
    except Cancelled:
        raise
    except Exception as error:  # a third-party model can raise any exception, which must not end the sweep
        return Outcome(task.key, "failed", error=_message(error), transient=isinstance(error, MemoryError | OSError))
    if stopped:
        reached = {name: value for name in task.front[0] if (value := so_far(result.end, name)) is not None}
        metrics: dict[str, int | float] = dict(reached)
    else:
        metrics = metrics_of(summarize(result))
    return Outcome(
        task.key,
        "stopped" if stopped else "done",
        trace_digest=decoded.digest,
        events=result.events,
        metrics=metrics,
        wall_ns=result.wall_ns,
    )


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, ReplayError) else f"{type(error).__name__}: {error}".removesuffix(": ")


class Cancelled(Exception):
    """The sweep was interrupted, so the run has no outcome."""


def _simulate(task: Task, decoded: Decoded, is_cancelled: Callable[[], bool]) -> tuple[RunResult, bool]:
    stopped = False

    def stop(tally: np.record) -> bool:
        nonlocal stopped
        if is_cancelled():
            raise Cancelled
        stopped = is_hopeless(task.front, tally)
        return stopped

    result = run(
        decoded.trace,
        rebuild_config(task.stack),
        sample_every_ns=NO_SAMPLES_NS,
        trim_every_ns=task.trim_every_ns,
        stop=stop,
    )
    return result, stopped


def is_hopeless(front: Front, tally: np.record) -> bool:
    """Whether one of the known results dominates the values of this run so far.

    Only metrics that cannot fall are compared: their final values are at least the values so far. An objective that can
    fall never ends a run.
    """
    for known in front:
        reached = {name: so_far(tally, name) for name in known}
        if all(value is not None and value >= known[name] for name, value in reached.items()) and any(
            value is not None and value > known[name] for name, value in reached.items()
        ):
            return True
    return False
