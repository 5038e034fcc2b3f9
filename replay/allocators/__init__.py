"""The contract of an allocator model, and how models of different files are joined without knowing each other.

A model is one module. It names itself to the configuration by its file name (or by an entry point
`replay.allocators`), and holds

    Config                           pydantic model of its section of the configuration
    State                            a NamedTuple of NumPy arrays, which is everything that changes, and of ints, which
                                     never do; its class names the model
    new_state(config) -> State       empty
    malloc(state, stack, size) -> place
    free(state, stack, place)
    block_size(state, stack, place) -> allocated bytes of that block, header and padding included
    address(state, stack, place) -> virtual address of the block

and where they differ from the defaults of this file

    ROLES                            its roles, if it cannot have both
    COUNTERS                         its own counters: each a `Counter`. The model keeps them in `stack.tally[0]` as
                                     `<model>_<name>`, and of a level its highest as `<model>_<name>_peak`
    calloc(state, stack, size) -> place
    memalign(state, stack, alignment, size) -> place  libc role: at a multiple of `alignment`, a power of two; a trace
                                     with memaligns is refused for a libc model without it
    realloc(state, stack, place, size) -> place
    made_size(state, stack, place, size) -> block_size of what malloc or calloc has just made there for `size`
    expect(state, place)             the block will soon be freed or moved, so prefetch; it may be freed by then
    fill(state, stack, place, size)  the program writes to the block's first `size` bytes
    trim(state, stack, resume) -> resume  libc role: malloc_trim(0); called with 0 first, returns 0 when done
    switch_thread(state, stack, thread)   libc role: what follows is another thread's; numbers are dense
    end_thread(state, stack)         libc role: the thread at work ends; a later one may have its number
    with_threads(state, count) -> State   Python, libc role: the same state with room for that many threads
    tick(state, stack, now_ns)       time passes: called before each event with its time, and at the time that the
                                     model passed to `wake_at`. It makes at most MARGIN system calls, and passes
                                     `now_ns` to `wake_at` where more are due. It may be called twice for one time.
                                     Models without `tick` pay nothing for it
    adopt(state, stack, address, size)  small role: a block that is older than the trace is freed
    grow(state) -> State             Python: the same state with more room, see below
    observe(state) -> dict           Python, small role: `classes` and `arenas`, arrays of stack.CLASS_VIEW, ARENA_VIEW
    spans(state, stack) -> array     Python: what it holds now, rows of SPAN that add up to every byte it has mapped
    span_changes(state, stack, seen) -> SpanChanges  Python: how they changed since the call that returned `seen`; None
                                     at first. For models with so many spans that comparing all of them is slow
    check(state, stack)              Python: raises AssertionError where an invariant does not hold

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
    counters_of,
    find_model,
    foreign_sources,
    is_compiled,
    layout_of,
    model_names,
    roles,
    usable_models,
)
from replay.allocators._spans import (
    SPAN,
    Reported,
    SpanChanges,
    SpanKind,
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
    NEVER,
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
    "address",
    "adopt",
    "ask_for_room",
    "attend",
    "block_size",
    "bundled_names",
    "calloc",
    "counters_of",
    "differing",
    "end_thread",
    "expect",
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


@_generic
def malloc(state, stack, size):
    """The place of a new block of `size` bytes."""


@_generic
def calloc(state, stack, size):
    """The place of a new block of `size` zeroed bytes."""


@_generic
def memalign(state, stack, alignment, size):
    """The place of a new block of `size` bytes at a multiple of `alignment`."""


@_generic
def realloc(state, stack, place, size):
    """The place of the block after it was given a new size."""


@_generic
def free(state, stack, place):
    """Frees the block."""


@_generic
def block_size(state, stack, place):
    """Allocated bytes of the block."""


@_generic
def address(state, stack, place):
    """The virtual address that the program gets."""


@_generic
def fill(state, stack, place, size):
    """The program writes to the block."""


@_generic
def made_size(state, stack, place, size):
    """Allocated bytes of the block that was just allocated there for `size` bytes."""


@_generic
def expect(state, place):
    """This place will be freed or moved soon, if it is still there by then."""


@_generic
def trim(state, stack, resume):
    """Releases free memory; returns where to continue if a table has no more room, else 0."""


@_generic
def switch_thread(state, stack, thread):
    """Events are this thread's from now on."""


@_generic
def end_thread(state, stack):
    """The thread whose events they were has ended."""


@_generic
def tick(state, stack, now_ns):
    """Tells the model the time, in nanoseconds since the trace's first event."""


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


@_generic
def adopt(state, stack, address, size):
    """Frees a block that is older than the trace, in a pool for `size` bytes."""
