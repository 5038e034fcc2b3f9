"""The contract of a model: the only list of what a model has. A module is checked against it when it is registered.

Parameters are those of the Protocols below without `self`, because a model is a module. The docstring of the package
explains roles, places, room and touched memory.
"""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from replay.allocators._spans import SpanChanges, TopRule
from replay.allocators._stack import Stack
from replay.allocators._tally import Counter, CounterKind

Place = int


class Constants(NamedTuple):
    """What a model declares, if it differs from these defaults."""

    ROLES: tuple[str, ...] = ("libc", "small")
    """The roles that it can have."""
    COUNTERS: tuple[Counter, ...] = ()
    """Its own counters. It keeps them in `stack.tally[0]` as `<model>_<name>`, and of a level its highest as
    `<model>_<name>_peak`."""
    ROUNDS_SIZES: bool = True
    """Whether a block can be larger than the bytes requested for it."""
    VERIFIED: str = ""
    """The figures that equal those of a real allocator, for sentences about what is exact: `pymalloc's blocks …`."""
    FREE_MEMORY: str = "free parts of its pages"
    """What the memory consists of that it holds besides live blocks, for a note in reports."""


class Model(Protocol):
    """What every model has."""

    Config: type
    """The pydantic model of its section of the configuration."""
    State: type
    """A NamedTuple of NumPy arrays, which is everything that changes, and of ints, which never do."""

    def new_state(self, config: Any) -> NamedTuple:
        """An empty state."""

    def malloc(self, state: Any, stack: Stack, size: int) -> Place:
        """The place of a new block of `size` bytes."""

    def free(self, state: Any, stack: Stack, place: Place) -> None:
        """Frees the block."""

    def block_size(self, state: Any, stack: Stack, place: Place) -> int:
        """Allocated bytes of the block, header and padding included."""

    def address(self, state: Any, stack: Stack, place: Place) -> int:
        """The virtual address that the program gets."""


class OptionalKernels(Protocol):
    """What kernels call besides. The package has a default for each: `default_calloc` and so on."""

    def calloc(self, state: Any, stack: Stack, size: int) -> Place:
        """The place of a new block of `size` zeroed bytes."""

    def memalign(self, state: Any, stack: Stack, alignment: int, size: int) -> Place:
        """Libc role: the place of a new block at a multiple of `alignment`, a power of two. A trace with memaligns is
        refused for a libc model without it."""

    def realloc(self, state: Any, stack: Stack, place: Place, size: int) -> Place:
        """The place of the block after it was given a new size."""

    def made_size(self, state: Any, stack: Stack, place: Place, size: int) -> int:
        """`block_size` of the block that malloc or calloc has just made there for `size` bytes."""

    def expect(self, state: Any, place: Place) -> None:
        """The block will soon be freed or moved, so prefetch; it may be freed by then."""

    def fill(self, state: Any, stack: Stack, place: Place, size: int) -> None:
        """The program writes to the block's first `size` bytes."""

    def trim(self, state: Any, stack: Stack, resume: int) -> int:
        """Libc role: malloc_trim(0). Called with 0 first; returns where to continue if a table has no more room, or 0
        when done."""

    def switch_thread(self, state: Any, stack: Stack, thread: int) -> None:
        """Libc role: events are this thread's from now on; numbers are dense."""

    def end_thread(self, state: Any, stack: Stack) -> None:
        """Libc role: the thread whose events they were has ended; a later one may have its number."""

    def adopt(self, state: Any, stack: Stack, address: int, size: int) -> None:
        """Small role: frees a block that is older than the trace, in a pool for `size` bytes."""

    def tick(self, state: Any, stack: Stack, now_ns: int) -> None:
        """Time passes: called before each event with its time, and at the time that the model passed to `wake_at`.

        It makes at most MARGIN system calls, and passes `now_ns` to `wake_at` where more are due. It may be called
        twice for one time. Models without `tick` pay nothing for it."""


class OptionalPython(Protocol):
    """What Python calls, if the model has it."""

    def with_threads(self, state: Any, count: int) -> NamedTuple:
        """Libc role: the same state with room for that many threads."""

    def grow(self, state: Any) -> NamedTuple:
        """The same state with more room."""

    def copy(self, state: Any) -> NamedTuple:
        """A copy of the state. Default: all of each array is copied."""

    def observe(self, state: Any) -> dict[str, Any]:
        """Small role: `classes` and `arenas`, arrays of CLASS_VIEW and ARENA_VIEW.

        They are not made from spans, which do not have how many blocks of a pool were ever used (`blocks_carved`)."""

    def spans(self, state: Any, stack: Stack) -> np.ndarray:
        """What the model holds now: rows of SPAN that add up to every byte it has mapped."""

    def span_changes(self, state: Any, stack: Stack, seen: Any) -> SpanChanges:
        """How the spans changed since the call that returned `seen`, which is None at first. For models with so many
        spans that comparing all of them is slow."""

    def kept_arenas(self, state: Any) -> int:
        """Small role: how many arenas without live blocks are not released."""

    def top_rule(self, state: Any, stack: Stack, region: int) -> TopRule:
        """Libc role: when the free end of a heap, which is a region of its spans, is released."""

    def check(self, state: Any, stack: Stack) -> None:
        """Raises AssertionError where an invariant does not hold."""


def _functions(protocol: type) -> dict[str, int]:
    """The number of parameters of each function by name, without `self`."""
    found = inspect.getmembers(protocol, inspect.isfunction)
    return {name: len(inspect.signature(each).parameters) - 1 for name, each in found if not name.startswith("_")}


REQUIRED = _functions(Model)
PARAMETERS = REQUIRED | _functions(OptionalKernels) | _functions(OptionalPython)
"""The number of parameters of each function of the contract."""
KERNELS = sorted(set(PARAMETERS) - {"new_state", *_functions(OptionalPython)})
"""The functions that kernels call."""
_OF_LEVELS = ("_peak", "_at_peak", "_end")
"""What the names of a level's metrics end in."""
_LIKENESS = 0.85
"""How like a name of the contract a name must be to be taken for a misspelt one."""


def find_mistakes(model: ModuleType) -> list[str]:
    """What the module breaks of the contract, a sentence for each; nothing if it keeps it."""
    mistakes = [f"lacks {name}" for name in ("Config", "State", *REQUIRED) if not hasattr(model, name)]
    state = getattr(model, "State", None)
    if state is not None and state.__module__ != model.__name__:
        mistakes.append("must define its State class itself: kernels find the model by it")
    for name, function in _public_functions(model):
        if name in PARAMETERS:
            parameters = list(inspect.signature(function).parameters)
            if len(parameters) != PARAMETERS[name]:
                wanted = f"{PARAMETERS[name]} parameters, not {len(parameters)} ({', '.join(parameters)})"
                mistakes.append(f"{name} takes {wanted}")
        elif near := get_close_matches(name, PARAMETERS, n=1, cutoff=_LIKENESS):
            mistakes.append(f"{name} is not a function of the contract (did you mean {near[0]!r}?)")
    return [*mistakes, *_mistakes_of_constants(model), *_mistakes_of_counters(getattr(model, "COUNTERS", ()))]


def _mistakes_of_constants(model: ModuleType) -> list[str]:
    default = Constants()
    roles = getattr(model, "ROLES", default.ROLES)
    mistakes = []
    if not isinstance(roles, tuple) or not roles or set(roles) - set(default.ROLES):
        mistakes.append(f"ROLES is {roles!r}; use a tuple of {' and '.join(map(repr, default.ROLES))}")
    for name in ("ROUNDS_SIZES", "VERIFIED", "FREE_MEMORY"):
        wanted, value = type(getattr(default, name)), getattr(model, name, getattr(default, name))
        if not isinstance(value, wanted):
            mistakes.append(f"{name} is {value!r}; use a value of the type {wanted.__name__}")
    known = Constants._fields
    for name in vars(model):
        if name.isupper() and name not in known and (near := get_close_matches(name, known, 1, _LIKENESS)):
            mistakes.append(f"{name} is not a constant of the contract (did you mean {near[0]!r}?)")
    return mistakes


def _mistakes_of_counters(counters: tuple[Counter, ...]) -> list[str]:
    """What is wrong with the counters that a model declares."""
    if not isinstance(counters, tuple):
        return [f"COUNTERS is {counters!r}; use a tuple"]
    if wrong := [each for each in counters if not isinstance(each, Counter)]:
        return [f"COUNTERS has {wrong[0]!r}, which is not a Counter"]
    names = [each.name for each in counters]
    twice = sorted({name for name in names if names.count(name) > 1})
    mistakes = [f"COUNTERS declares {name!r} twice" for name in twice]
    mistakes += [f"the name of a counter, {name!r}, is not an identifier" for name in names if not name.isidentifier()]
    mistakes += [
        f"the name of a counter, {name!r}, ends like a metric of a level ({', '.join(_OF_LEVELS)})"
        for name in names
        if name.endswith(_OF_LEVELS)
    ]
    mistakes += [
        f"the kind of counter {each.name!r} is {each.kind!r}; use one of {', '.join(CounterKind)}"
        for each in counters
        if each.kind not in tuple(CounterKind)
    ]
    return mistakes


def _public_functions(model: ModuleType) -> list[tuple[str, Callable[..., Any]]]:
    """The functions that the module or its package offers, without those that it imported from others."""
    return [
        (name, each)
        for name, each in vars(model).items()
        if callable(each)
        and not isinstance(each, type)
        and not name.startswith("_")
        and (name in PARAMETERS or f"{getattr(each, '__module__', None)}.".startswith(f"{model.__name__}."))
    ]
