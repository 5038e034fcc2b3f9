"""A run as Chrome's trace events, which Perfetto and chrome://tracing show: levels, phases, garbage collections.

    level        a counter (`C`) for each level that is ever above 0, with a value at each sample
    phase        a slice (`X`) from a mark to the next one
    collection   a slice in the track of its thread

Times are in microseconds, with three decimals, since the first event of the trace.
"""

from collections.abc import Iterator
from typing import Any

from replay.allocators import LEVELS
from replay.analysis import frames
from replay.simulation.result import RunResult

PROCESS, PHASES = 1, 1
"""Number of the process, and of the track with phases."""
_FIRST_THREAD = 2
"""The track of collections in thread 0; that of thread 1 follows."""
Event = dict[str, Any]


def trace_events(result: RunResult, title: str) -> Event:
    """Returns the JSON object. `title` is the name of the process."""
    events = [*_counters(result), *_phases(result), *_collections(result)]
    return {"traceEvents": [_name("process_name", 0, title), *events], "displayTimeUnit": "ns"}


def _name(kind: str, track: int, name: str) -> Event:
    return {"ph": "M", "pid": PROCESS, "tid": track, "name": kind, "args": {"name": name}}


def _slice(track: int, name: str, start_ns: int, end_ns: int, **arguments: Any) -> Event:
    known = {key: value for key, value in arguments.items() if value is not None}
    times = {"ts": start_ns / 1000, "dur": (end_ns - start_ns) / 1000}
    return {"ph": "X", "pid": PROCESS, "tid": track, "name": name, **times, "args": known}


def _counters(result: RunResult) -> Iterator[Event]:
    times_ns = result.sample_times_ns.tolist()
    for level in LEVELS:
        values = result.samples[level]
        if values.any():
            for time_ns, value in zip(times_ns, values.tolist(), strict=True):
                yield {"ph": "C", "pid": PROCESS, "name": level, "ts": time_ns / 1000, "args": {"value": value}}


def _phases(result: RunResult) -> Iterator[Event]:
    marks = [(name, time_ns) for name, time_ns, _ in result.phases if time_ns <= result.duration_ns]
    if marks:
        yield _name("thread_name", PHASES, "phases")
    ends_ns = [*(time_ns for _, time_ns in marks[1:]), result.duration_ns]
    for (name, start_ns), end_ns in zip(marks, ends_ns, strict=False):
        yield _slice(PHASES, name, start_ns, end_ns)


def _collections(result: RunResult) -> Iterator[Event]:
    collections = frames.collections(result)
    for thread in collections["thread"].unique(maintain_order=True):
        yield _name("thread_name", _FIRST_THREAD + thread, f"garbage collections in thread {thread}")
    for row in collections.rows(named=True):
        generation = row["generation"]
        yield _slice(
            _FIRST_THREAD + row["thread"],
            "collection" if generation is None else f"collection of generation {generation}",
            row["time_ns"],
            row["time_ns"] + row["duration_ns"],
            visited_objects=row["visited_objects"],
            found_objects=row["found_objects"],
            freed_blocks=row["freed_blocks"],
            freed_bytes=row["freed_bytes"],
        )
