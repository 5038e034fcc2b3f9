"""The functions of a model as a typed Protocol, and the check of a module against it when it is registered."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from replay.allocators._spans import SpanChanges
from replay.allocators._stack import Stack
from replay.allocators._tally import Counter, CounterKind

Place = int


class Model(Protocol):
    """What every model has; the package's docstring says what each function does."""

    Config: type
    State: type

    def new_state(self, config: Any) -> NamedTuple: ...
    def malloc(self, state: Any, stack: Stack, size: int) -> Place: ...
    def free(self, state: Any, stack: Stack, place: Place) -> None: ...
    def block_size(self, state: Any, stack: Stack, place: Place) -> int: ...
    def address(self, state: Any, stack: Stack, place: Place) -> int: ...


class OptionalKernels(Protocol):
    """What kernels call besides; a default where the model has none."""

    def calloc(self, state: Any, stack: Stack, size: int) -> Place: ...
    def memalign(self, state: Any, stack: Stack, alignment: int, size: int) -> Place: ...
    def realloc(self, state: Any, stack: Stack, place: Place, size: int) -> Place: ...
    def made_size(self, state: Any, stack: Stack, place: Place, size: int) -> int: ...
    def expect(self, state: Any, place: Place) -> None: ...
    def fill(self, state: Any, stack: Stack, place: Place, size: int) -> None: ...
    def trim(self, state: Any, stack: Stack, resume: int) -> int: ...
    def switch_thread(self, state: Any, stack: Stack, thread: int) -> None: ...
    def end_thread(self, state: Any, stack: Stack) -> None: ...
    def adopt(self, state: Any, stack: Stack, address: int, size: int) -> None: ...
    def tick(self, state: Any, stack: Stack, now_ns: int) -> None: ...


class OptionalPython(Protocol):
    """What Python calls, if the model has it."""

    def with_threads(self, state: Any, count: int) -> NamedTuple: ...
    def grow(self, state: Any) -> NamedTuple: ...
    def observe(self, state: Any) -> dict[str, Any]: ...
    def spans(self, state: Any, stack: Stack) -> np.ndarray: ...
    def span_changes(self, state: Any, stack: Stack, seen: Any) -> SpanChanges: ...
    def check(self, state: Any, stack: Stack) -> None: ...


def _functions(protocol: type) -> dict[str, int]:
    """The number of parameters of each function by name, without `self`."""
    found = inspect.getmembers(protocol, inspect.isfunction)
    return {name: len(inspect.signature(each).parameters) - 1 for name, each in found if not name.startswith("_")}


REQUIRED = _functions(Model)
PARAMETERS = REQUIRED | _functions(OptionalKernels) | _functions(OptionalPython)
"""The number of parameters of each function of the contract."""
KERNELS = sorted(set(PARAMETERS) - {"new_state", *_functions(OptionalPython)})
"""The functions that kernels call."""
_CONSTANTS = ("ROLES", "COUNTERS")
_POSSIBLE_ROLES = ("libc", "small")
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
    roles = getattr(model, "ROLES", _POSSIBLE_ROLES)
    mistakes = []
    if not isinstance(roles, tuple) or not roles or set(roles) - set(_POSSIBLE_ROLES):
        mistakes.append(f"ROLES is {roles!r}; use a tuple of {' and '.join(map(repr, _POSSIBLE_ROLES))}")
    for name in vars(model):
        if name.isupper() and name not in _CONSTANTS and (near := get_close_matches(name, _CONSTANTS, 1, _LIKENESS)):
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
