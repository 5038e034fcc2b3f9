"""One run of a sweep: a task goes in, an outcome comes out, in a thread here or in a worker elsewhere."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from replay.analysis.metrics import metrics_of, so_far, summarize
from replay.config import StackConfig, rebuild_config
from replay.simulation.result import RunResult
from replay.simulation.run import NO_SAMPLES_NS, run
from replay.support.errors import ReplayError
from replay.support.version import identity
from replay.sweeps.traces import Decoded, Input

Status = Literal["done", "stopped", "failed"]
Front = tuple[dict[str, float], ...]
"""Results that are known, by objective: none of them is better in all than another."""


@dataclass(frozen=True)
class Task:
    """What a run needs to be done anywhere."""

    key: str
    """The same for runs that give the same results."""
    input: Input
    stack: dict[str, Any]
    """A StackConfig as JSON has it."""
    trim_every_ns: int | None = None
    front: Front = ()
    """A run that can no longer come to something better than one of these is ended."""
    version: str = field(default_factory=identity)


@dataclass(frozen=True)
class Outcome:
    """How a run went. All but `wall_ns` and `python` is the same wherever it was done."""

    key: str
    status: Status
    error: str | None = None
    transient: bool = False
    """The error was of the machine, not of the run: worth trying again."""
    trace_digest: str = ""
    events: int = 0
    """Rows simulated: fewer than the trace has if the run was ended early."""
    metrics: dict[str, int | float] = field(default_factory=dict)
    """Of an early end, those that can only rise, as far as they had come."""
    wall_ns: int = 0
    python: str = platform.python_version()


def make_task(trace: Input, stack: StackConfig, stack_key: str, trim_every_ns: int | None, front: Front = ()) -> Task:
    key = f"{trace.key}:{stack_key}:{trim_every_ns or 0}"
    return Task(key, trace, stack.model_dump(mode="json"), trim_every_ns, front)


def do(task: Task, get: Callable[[Input], Decoded], is_cancelled: Callable[[], bool] = lambda: False) -> Outcome:
    """Simulates the task's trace; an error of the trace or stack becomes a failed outcome with its message."""
    try:
        decoded = get(task.input)
    except (ReplayError, MemoryError, OSError) as error:  # what cannot be read now may be there the next time
        return Outcome(task.key, "failed", error=_message(error), transient=True)
    try:
        result, stopped = _simulate(task, decoded, is_cancelled)
    except Cancelled:
        raise
    except Exception as error:  # a model of another package may raise anything, and is one row of many
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
    """The sweep was interrupted; the run's outcome is not known."""


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
    """Whether one of the results is at least as good in every objective as this run has come to, and better in one.

    Holds only for metrics that can only rise: what they have come to, they will not go below. An objective of
    another kind never is a reason to end a run.
    """
    for known in front:
        reached = {name: so_far(tally, name) for name in known}
        if all(value is not None and value >= known[name] for name, value in reached.items()) and any(
            value is not None and value > known[name] for name, value in reached.items()
        ):
            return True
    return False
