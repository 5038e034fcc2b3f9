"""Allocator models, and how models of different files are joined without knowing each other.

A model is one module or package. It names itself to the configuration by its file name (or by an entry point
`replay.allocators`). `_contract` lists what it has, and what each function does; `bump` is a complete example.

`State` must be a NamedTuple class of that very module: numba picks the functions by its type (`overload` below), and
so does plain Python. If one function of a model is not compiled, all of it runs in plain Python, with the same results.

Two roles. The *libc* role answers the raw domain and everything that the role above passes on. The *small* role
answers `mem` and `obj` where the configuration says so; it is on top of the libc role. Both call the address space
below (`replay.allocators.linux`), which is always the same. Calls go downwards only.

A *place* is an int64 by which a model finds its block without a search; it need not be an address. Places of the libc
role are >= 0. The small role's own places are >= 0, and for a block that it passed on to libc it returns
`of_libc(place)`: from then on the block belongs to libc, whichever call frees it.

Room. A kernel cannot grow an array. A model that is left with room for fewer than MARGIN further steps calls
`ask_for_room(stack)`. The current event still completes; then the simulator grows every state and continues.

Memory that is touched. Each model says which bytes *it* writes (`linux.touch`: headers, links). The program is
assumed to write to all bytes that it requests: for blocks of the libc role the simulator calls `fill`; the small role
touches its blocks as it hands them out, because it knows when a page is new.
"""

import sys
from collections.abc import Callable
from typing import Any

from replay.allocators._registry import (
    bundled_names,
    constants_of,
    counters_of,
    explain_unknown,
    find_model,
    foreign_sources,
    is_compiled,
    layout_of,
    model_names,
    roles,
    usable_models,
)
from replay.allocators._spans import (
    NEVER,
    SPAN,
    Reported,
    SpanChanges,
    SpanKind,
    TopRule,
    differing,
    report,
    report_simple,
    retract,
    span_rows,
    with_items,
    written,
)
from replay.allocators._stack import (
    ARENA_MAPPED,
    ARENA_UNMAPPED,
    ARENA_VIEW,
    CLASS_VIEW,
    LARGE,
    LOG,
    MARGIN,
    NO_MEMORY,
    RESIDENT_PEAK,
    ROOM,
    Stack,
    ask_for_room,
    attend,
    give_record_back,
    is_of_libc,
    log,
    now_ns,
    of_libc,
    take_record,
    wake_at,
)
from replay.allocators._tally import (
    LEVELS,
    NO_WAKE_NS,
    OWN,
    SYSCALLS,
    TALLY,
    TIMED,
    Counter,
    CounterKind,
    Layout,
    field_prefix,
    shown_fields,
    tally_layout,
)
from replay.allocators.linux import touch
from replay.jit.arrays import extend, record
from replay.jit.compiling import generic, inlined, leaf

__all__ = [
    "ARENA_MAPPED",
    "ARENA_UNMAPPED",
    "ARENA_VIEW",
    "CLASS_VIEW",
    "LARGE",
    "LEVELS",
    "LOG",
    "MARGIN",
    "NEVER",
    "NO_MEMORY",
    "NO_WAKE_NS",
    "OWN",
    "RESIDENT_PEAK",
    "ROOM",
    "SPAN",
    "SYSCALLS",
    "TALLY",
    "TIMED",
    "Counter",
    "CounterKind",
    "Layout",
    "Reported",
    "SpanChanges",
    "SpanKind",
    "Stack",
    "TopRule",
    "address",
    "adopt",
    "ask_for_room",
    "attend",
    "block_size",
    "bundled_names",
    "calloc",
    "constants_of",
    "counters_of",
    "differing",
    "end_thread",
    "expect",
    "explain_unknown",
    "extend",
    "field_prefix",
    "fill",
    "find_model",
    "foreign_sources",
    "free",
    "give_record_back",
    "is_compiled",
    "is_of_libc",
    "layout_of",
    "log",
    "made_size",
    "malloc",
    "memalign",
    "model_names",
    "now_ns",
    "of_libc",
    "realloc",
    "record",
    "report",
    "report_simple",
    "retract",
    "roles",
    "sees_time",
    "shown_fields",
    "span_rows",
    "switch_thread",
    "take_record",
    "tally_layout",
    "tick",
    "trim",
    "usable_models",
    "wake_at",
    "with_items",
    "written",
]


def _implementation(state_type: type, name: str) -> Callable[..., Any]:
    """The model's own function, or the default of this file."""
    model = sys.modules[state_type.__module__]
    found: Callable[..., Any] = getattr(model, name, None) or globals()[f"default_{name}"]
    return found


_generic = generic(_implementation)


@leaf
def default_calloc(state, stack, size):
    """Malloc; the zeros are the simulator's `fill`."""
    return malloc(state, stack, size)


@leaf
def default_memalign(state, stack, alignment, size):
    """Never called: the simulator refuses memaligns for such a model."""
    return malloc(state, stack, size)


@leaf
def default_realloc(state, stack, place, size):
    """A new block, a copy, and the old one freed."""
    new_place = malloc(state, stack, size)
    free(state, stack, place)
    return new_place


@inlined
def default_made_size(state, stack, place, size):
    """What is known of any block."""
    return block_size(state, stack, place)


@leaf
def default_fill(state, stack, place, size):
    """Every byte, whatever was there before."""
    if size > 0:
        begin = address(state, stack, place)
        touch(stack, begin, begin + size)


@leaf
def default_expect(state, place):
    """Nothing."""


@leaf
def default_trim(state, stack, resume):
    """Releases nothing."""
    return 0


@leaf
def default_switch_thread(state, stack, thread):
    """All threads are one."""


@leaf
def default_end_thread(state, stack):
    """All threads are one."""


@leaf
def default_tick(state, stack, now_ns):
    """Nothing depends on time."""


@leaf
def default_adopt(state, stack, address, size):
    """Ignores blocks that are older than the trace."""


# The functions of the contract as kernels call them: each calls the one of the model whose state it gets. `_contract`
# says what they do.


@_generic
def malloc(state, stack, size): ...


@_generic
def calloc(state, stack, size): ...


@_generic
def memalign(state, stack, alignment, size): ...


@_generic
def realloc(state, stack, place, size): ...


@_generic
def free(state, stack, place): ...


@_generic
def block_size(state, stack, place): ...


@_generic
def address(state, stack, place): ...


@_generic
def fill(state, stack, place, size): ...


@_generic
def made_size(state, stack, place, size): ...


@_generic
def expect(state, place): ...


@_generic
def trim(state, stack, resume): ...


@_generic
def switch_thread(state, stack, thread): ...


@_generic
def end_thread(state, stack): ...


@_generic
def tick(state, stack, now_ns): ...


@_generic
def adopt(state, stack, address, size): ...


def _clock_of(state_type: type, name: str) -> Callable[..., Any]:
    return _sees_time if hasattr(sys.modules[state_type.__module__], "tick") else _sees_no_time


@inlined
def _sees_time(state, stack):
    return True


@inlined
def _sees_no_time(state, stack):
    return False


@generic(_clock_of)
def sees_time(state, stack):
    """Whether the model has a `tick`; known when the caller is compiled."""
