"""The counters of a run: one record, whose fields every layer writes, and whose copies are the samples.

A model may declare counters (`Counter`). The record then has further fields, called `<model>_<counter>`.
Each kind of field has its range of the record, which `Layout` knows: several processes are added up range by range.
"""

from enum import StrEnum
from functools import cache
from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record

LEVELS = (
    "requested_bytes", "block_bytes", "pool_bytes", "arena_bytes", "heap_bytes", "mapped_bytes", "resident_bytes",
    "arenas",
)  # fmt: skip
"""Counters that rise and fall, and have a peak. `arenas` counts mapped ones."""

TIMED = ("mapped_bytes", "resident_bytes")
"""Levels of the address space, with an exact mean over time: each has two fields `_timed` and `_timed_high`.

The mean of requested bytes is computed from the trace alone (`replay.trace.requested`): two instructions more an event
would be too many for the loop."""

SYSCALLS = ("mmap", "munmap", "mremap", "brk", "madvise", "mprotect")

OWN = (
    "begin_ns", "wake_ns", "woken_ns", "has_small",
    "row", "thread", "rows_logged", "attention", "first_row", "at", "stop", "idle", "requested_slack", "block_slack",
)  # fmt: skip
"""Fields for the simulator itself: they count nothing."""

_SUMS = (
    "small_requested_bytes", "small_block_bytes", "libc_requested_bytes", "libc_block_bytes",
    "arenas_mapped", "arenas_unmapped",
    "pools_used", "pools_full", "pools_free", "pools_made",
    *SYSCALLS, *(f"{name}_bytes" for name in SYSCALLS),
    "page_faults", "huge_pages",
    "mallocs", "callocs", "reallocs", "frees", "memaligns",
)  # fmt: skip


NO_WAKE_NS = (1 << 63) - 1
"""`wake_ns` if no model wants to be woken: a time that no trace reaches."""


class CounterKind(StrEnum):
    """How a model's counter behaves, and how it adds up over several processes."""

    LEVEL = "level"
    """Rises and falls; the model keeps `<counter>_peak` beside it. The sum of all processes, with its own peak."""
    SUM = "sum"
    """Never falls. The sum of all processes."""
    MAXIMUM = "maximum"
    """The highest value so far. The maximum of all processes."""


class Counter(NamedTuple):
    """A counter that a model declares in `COUNTERS` and keeps in the tally as `<model>_<name>`."""

    name: str
    kind: CounterKind
    meaning: str
    unit: str = ""
    """`bytes`, or nothing for a number of things."""
    more_is_worse: bool = True
    """If not, neither more nor less is worse."""


class Layout(NamedTuple):
    """The record of a run's counters, and where in it each kind of field ends."""

    dtype: np.dtype
    ends: np.ndarray
    """int64: the first field behind the levels, peaks, sums, maxima, and the pairs of words for the means."""


def field_prefix(model: str) -> str:
    """What the fields of the counters of `model` begin with; an underscore follows."""
    return model.replace("-", "_").replace(".", "_")


@cache
def tally_layout(declared: tuple[tuple[str, tuple[Counter, ...]], ...]) -> Layout:
    """The layout with the counters that these models (by name) declare."""
    own = [
        (f"{field_prefix(model)}_{counter.name}", counter.kind) for model, counters in declared for counter in counters
    ]
    levels = (*LEVELS, *(name for name, kind in own if kind is CounterKind.LEVEL))
    groups = (
        levels,
        tuple(f"{name}_peak" for name in levels),
        (*_SUMS, *(name for name, kind in own if kind is CounterKind.SUM)),
        tuple(name for name, kind in own if kind is CounterKind.MAXIMUM),
        tuple(f"{name}_{part}" for name in TIMED for part in ("timed", "timed_high")),
    )
    fields = [name for group in groups for name in group]
    return Layout(record(*fields, *OWN), np.cumsum([len(group) for group in groups]))


TALLY = tally_layout(()).dtype
"""All counters of a run, one record: every layer writes its own fields, samples are copies of it.

    requested_bytes   live, as the program requested them        small_*, libc_*: the part in blocks of each role
    block_bytes       live, as allocated
    pool_bytes        in pools that hold blocks
    arena_bytes       in mapped arenas
    heap_bytes        mapped for libc: brk and its own mmaps
    mapped_bytes      mapped in all; resident_bytes: touched and not released
    page_faults       first touches of pages; huge_pages: those served with a huge page
    *_timed           sum of the level's changes, each multiplied by its time since `begin_ns`, in 128 bits: the low 64
                      here, the high ones in *_timed_high. The integral of the level until t is t * level - this
    row               the event at which counters were last computed; thread: its thread, -1 before the first event
    attention         bits: why the simulator must stop after this event
    begin_ns          the time of the trace's first event
    first_row, at     the current event is row `at` of its batch; `first_row` rows came before the batch
    stop              the row of the batch at which `attention` is checked at the latest
    idle              rows that concern no block
    has_small         1 where there is a small role
    wake_ns           when a model wants the next `tick` besides those at events; NO_WAKE_NS if none does
    woken_ns          the time while models are called between events, else -1
    *_slack           the peak of a level less the level
"""


def shown_fields(dtype: np.dtype) -> list[str]:
    """Returns the fields that users see: levels, counters and the thread, without those for means and the simulator."""
    hidden = {*OWN, *(f"{name}_{part}" for name in TIMED for part in ("timed", "timed_high"))} - {"thread"}
    return [name for name in dtype.names or () if name not in hidden]
