"""A longer or a busier run from a short one: a trace with its times stretched, repeated, and copied side by side."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from replay.support.errors import ReplayError
from replay.support.limits import MAX_SPAN
from replay.trace import Op, Trace
from replay.trace.editing import EditedTrace, KeyedEvents, edited, keyed
from replay.trace.editing.live_blocks import Living
from replay.trace.editing.merging import Part, merged

_BLOCK_BITS = 32
_LARGEST_TERM = 10**9
"""Of a time factor as a fraction, so that products stay within 64 bits."""


def stretched(trace: Trace, factor: Fraction, words: str) -> EditedTrace:
    """The trace with the time since its first event multiplied, rounded down."""
    if not 0 < factor <= _LARGEST_TERM or factor.denominator > _LARGEST_TERM:
        raise ReplayError(f"a time factor is above 0 and has at most nine digits, unlike {float(factor):g}")
    return EditedTrace(lambda: _stretch(trace, factor), lambda: edited(trace.metadata, words))


def _stretch(trace: Trace, factor: Fraction) -> Iterator[KeyedEvents]:
    begin_ns: int | None = None
    for events in trace.batches():
        if events.rows:
            begin_ns = int(events.time_ns[0]) if begin_ns is None else begin_ns
            passed_ns = events.time_ns - begin_ns
            if int(passed_ns[-1]) * factor > MAX_SPAN:
                raise ReplayError("the trace would last more than thirty years; take a smaller time factor")
            whole, rest = np.divmod(passed_ns, factor.denominator)
            passed_ns = whole * factor.numerator + rest * factor.numerator // factor.denominator
            events = events._replace(time_ns=begin_ns + passed_ns)
        yield keyed(events)


def repeated(trace: Trace, times: int, words: str, *, keep_live: bool) -> EditedTrace:
    """The trace so many times, one right after the other.

    What lives at the end of a repetition is freed, in the order of birth, before the next one begins, or with
    `keep_live` never. After the last repetition the same lives as after the trace.
    """
    return EditedTrace(lambda: _repeat(trace, times, keep_live), lambda: edited(trace.metadata, words))


def _repeat(trace: Trace, times: int, keep_live: bool) -> Iterator[KeyedEvents]:
    shift_ns = 0
    for repetition in range(times):
        living = Living(trace)
        begin_ns = end_ns = None
        own = np.uint64(repetition << _BLOCK_BITS)
        for events in trace.batches():
            if events.rows:
                begin_ns = int(events.time_ns[0]) if begin_ns is None else begin_ns
                end_ns = int(events.time_ns[-1])
            living.follow(events)
            yield KeyedEvents(events._replace(time_ns=events.time_ns + shift_ns), events.block.astype(np.uint64) | own)
        if begin_ns is None or end_ns is None:
            return
        if not keep_live and repetition < times - 1:
            ending = living.events(Op.FREE, end_ns + shift_ns)
            yield KeyedEvents(ending, ending.block.astype(np.uint64) | own)
        shift_ns += end_ns - begin_ns
        if shift_ns + end_ns > MAX_SPAN * 2:
            raise ReplayError("the trace would last more than thirty years; repeat it less often")


def copied(copies: list[Trace], shift_ns: int, words: str, *, as_processes: bool = False) -> EditedTrace:
    """Copies of one trace, opened once for each, as workers of one process, each `shift_ns` after the one before; or
    `as_processes`, each as a process of its own."""
    parts = [
        Part(trace, f"copy {number}" if number or as_processes else "", number * shift_ns)
        for number, trace in enumerate(copies)
    ]
    return merged(parts, words, as_processes=as_processes)
