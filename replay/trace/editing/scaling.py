"""Makes longer runs or higher loads from a trace: stretches its times, repeats it, or merges copies of it."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from replay.support.errors import ReplayError
from replay.support.limits import MAX_SPAN
from replay.trace import Op, Trace
from replay.trace.editing import EditedTrace, KeyedEvents, edited, keyed, refuse_too_long
from replay.trace.editing.live_blocks import LiveBlocks
from replay.trace.editing.merging import Part, merged

_BLOCK_BITS = 32
_LARGEST_TERM = 10**9
"""Limit of numerator and denominator of a time factor, so that products fit into 64 bits."""


def stretched(trace: Trace, factor: Fraction, command: str) -> EditedTrace:
    """Returns the trace with the time since its first event multiplied by `factor` and rounded down."""
    if not 0 < factor <= _LARGEST_TERM or factor.denominator > _LARGEST_TERM:
        raise ReplayError(
            f"time factor {float(factor):g} is not supported; it must be above 0 and have at most nine digits"
        )
    return EditedTrace(lambda: _stretch(trace, factor), lambda: edited(trace.metadata, command))


def _stretch(trace: Trace, factor: Fraction) -> Iterator[KeyedEvents]:
    begin_ns: int | None = None
    for events in trace.batches():
        if events.rows:
            begin_ns = int(events.time_ns[0]) if begin_ns is None else begin_ns
            elapsed_ns = events.time_ns - begin_ns
            refuse_too_long(int(elapsed_ns[-1]) * factor, "time factor")
            whole, rest = np.divmod(elapsed_ns, factor.denominator)
            elapsed_ns = whole * factor.numerator + rest * factor.numerator // factor.denominator
            events = events._replace(time_ns=begin_ns + elapsed_ns)
        yield keyed(events)


def repeated(trace: Trace, times: int, command: str, *, keep_live: bool) -> EditedTrace:
    """Returns the trace repeated `times` times, without a pause.

    Blocks that are live at the end of a repetition are freed before the next one, in the order of allocation; with
    `keep_live`, they are never freed. Blocks that are live after the last repetition stay live.
    """
    return EditedTrace(lambda: _repeat(trace, times, keep_live), lambda: edited(trace.metadata, command))


def _repeat(trace: Trace, times: int, keep_live: bool) -> Iterator[KeyedEvents]:
    shift_ns = 0
    for repetition in range(times):
        live_blocks = LiveBlocks(trace)
        begin_ns = end_ns = None
        high_bits = np.uint64(repetition << _BLOCK_BITS)
        for events in trace.batches():
            if events.rows:
                begin_ns = int(events.time_ns[0]) if begin_ns is None else begin_ns
                end_ns = int(events.time_ns[-1])
            live_blocks.follow(events)
            yield KeyedEvents(
                events._replace(time_ns=events.time_ns + shift_ns), events.block.astype(np.uint64) | high_bits
            )
        if begin_ns is None or end_ns is None:
            return
        if not keep_live and repetition < times - 1:
            frees = live_blocks.events(Op.FREE, end_ns + shift_ns)
            yield KeyedEvents(frees, frees.block.astype(np.uint64) | high_bits)
        shift_ns += end_ns - begin_ns
        if shift_ns + end_ns > MAX_SPAN * 2:
            raise ReplayError("the trace would last more than thirty years; repeat it less often")


def copied(copies: list[Trace], shift_ns: int, command: str, *, as_processes: bool = False) -> EditedTrace:
    """Returns a merge of copies of one trace, each `shift_ns` later than the previous one. They are threads of one
    process or, with `as_processes`, separate processes. `copies` has the trace opened once for each copy."""
    parts = [
        Part(trace, f"copy {number}" if number or as_processes else "", number * shift_ns)
        for number, trace in enumerate(copies)
    ]
    return merged(parts, command, as_processes=as_processes)
