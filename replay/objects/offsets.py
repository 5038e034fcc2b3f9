"""How far instructions are from the start of their function in CPython's code, where it matters.

An exception that leaves a handler or `finally` has its place in the code as an integer object on the stack, from 3.11
to 3.13. In 3.8, a `return` through `finally` has one too. Small integers exist already; larger ones are allocated. The
exact place depends on CPython's compiler, so this module counts with bounds: the fewest and the most units of code
before each instruction.
"""

from typing import NamedTuple

import numpy as np

from replay.objects.handlers import (
    CLASS_BITS,
    COLD,
    DEAD,
    EXCEPTION_COPY,
    LENGTH_MASK,
    NAMED_BEFORE,
    RETURN_COPY,
    TRIES_BITS,
    UNKNOWN,
)
from replay.objects.instructions import IN_CALL, Code, Do
from replay.objects.layout import BRANCHES, function_bounds

_LARGEST_SMALL = 256
_RELEASES = ((3, 8), (3, 11), (3, 12), (3, 13))
_GLOBAL, _CALL, _METHOD, _ATTRIBUTE = (1, 6, 5, 5), (1, 7, 4, 4), (1, 11, 10, 10), (1, 5, 10, 10)
"""Units of an instruction in each of the releases: of a global name, a call, a method, an attribute."""


def _units(*parts: tuple[int, ...] | int) -> tuple[int, ...]:
    """Returns the units of several instructions in each release; a number counts in each of them."""
    return tuple(
        sum(part if isinstance(part, int) else part[index] for part in parts) for index in range(len(_RELEASES))
    )


_OPERATION, _JUMP, _TEST = (1, 2, 2, 2), (1, 1, 1, 2), (1, 1, 1, 2)
_FUNCTION = _units(_GLOBAL, _CALL)
_UNITS = {
    Do.ATTRIBUTE: _ATTRIBUTE, Do.SET_ATTRIBUTE: (1, 5, 5, 5),
    Do.LETTERS: _units(_GLOBAL, _OPERATION), Do.BYTES: _units(_GLOBAL, _OPERATION), Do.HALF: _units(1, _OPERATION),
    Do.SUM: _OPERATION, Do.PRODUCT: _OPERATION,
    Do.LIST_OF_CONSTANTS: (1, 2, 2, 2), Do.SET_OF_CONSTANTS: (1, 2, 2, 2),
    Do.NEW: _FUNCTION, Do.CALL: _FUNCTION, Do.LENGTH: _FUNCTION, Do.FIRST_KEY: _FUNCTION, Do.NEW_EXCEPTION: _FUNCTION,
    Do.UNWIND: _units(2), Do.ITEM: (1, 5, 2, 2), Do.SET_ITEM: _OPERATION,
    Do.APPEND: _units(_METHOD, _CALL, 1), Do.POP_LAST: _units(_METHOD, _CALL), Do.CLEAR: _units(_METHOD, _CALL, 1),
    Do.ADD: _units(_METHOD, _CALL, 1), Do.DISCARD_ELEMENT: _units(_METHOD, _CALL, 1),
    Do.RANGE: _units(_GLOBAL, 1, _CALL), Do.NEXT: (1, 1, 2, 2),
    Do.CHOOSE: _units(_GLOBAL, _GLOBAL, _CALL, 1, (1, 3, 2, 2), _TEST),
    Do.COLLECT: _units(_GLOBAL, _METHOD, 1, _CALL), Do.FOUND: _units(0),
    Do.SWITCH_COLLECTOR: _units(_GLOBAL, _METHOD, _CALL),
    Do.CONTAINS: _units((1, 1, 1, 2), _TEST),
    Do.ARGUMENTS: _units(0), Do.RAISE_CLASS: _units(_GLOBAL, 1),
    Do.MATCH: _units((4, 2, 2, 2), _TEST), Do.HANDLED: (1, 0, 0, 0),
    Do.LEAVE_HANDLER: _units(1), Do.RERAISE: (1, 4, 4, 4),
    Do.MAKE_CELL: (0, 1, 1, 1), Do.MAKE_FUNCTION: (3, 2, 2, 2), Do.MAKE_CLOSURE: (3, 2, 2, 3),
    Do.LOAD_METHOD: _METHOD, Do.CALL_METHOD: _CALL, Do.CALL_VALUE: _units((0, 1, 1, 1), _CALL),
    Do.START: _units(_GLOBAL, _GLOBAL, _CALL), Do.ACQUIRE: _units(_METHOD, _CALL), Do.RELEASE: _units(_METHOD, _CALL),
    Do.PUT: _units(_METHOD, _CALL, 1), Do.TAKE: _units(_METHOD, _CALL), Do.SLEEP: _units(_GLOBAL, 1, _CALL),
    Do.LOCK: _FUNCTION, Do.QUEUE: _FUNCTION, Do.FILL_QUEUE: _units(0), Do.WORK: _units(0),
    Do.MAKE_ARGUMENTS: _units(0), Do.CALL_INIT: _units(0), Do.END_INIT: _units(0),
    Do.UNBIND: (0, 3, 3, 3), Do.ENTER_FINALLY: (2, 0, 0, 0), Do.LEAVE_FINALLY: _units(0),
}  # fmt: skip
"""Units in each release; all others have one."""
_UNITS |= {
    Do.GENERATOR_FRAME: _units(0), Do.GENERATOR: _FUNCTION, Do.YIELD: (2, 3, 3, 3), Do.NEXT_OF: _FUNCTION,
    Do.CLOSE: _units(_METHOD, _CALL, 1), Do.AWAIT: _units(1), Do.SEND: (2, 2, 3, 3), Do.YIELD_AGAIN: (0, 3, 4, 4),
    Do.STEPS: _units(_METHOD, _CALL),
    Do.PACK_ARGUMENTS: _units(0), Do.WEAKREF: _FUNCTION, Do.REFERENT: _units((0, 1, 1, 1), _CALL),
    Do.IS_NONE: (3, 1, 1, 2),
}  # fmt: skip
_UNBIND, _UNBIND_AND_RAISE = (6, 3, 3, 3), (0, 4, 4, 4)
"""Units that unbind the variable of a handler: at its end, and after an exception."""
_LONGEST_COPY = 24
"""A `return` with what it needs, which CPython copies instead of jumping to it."""


_CLEANED, _CLEANING, _START = ((3, 12), (3, 13)), 3, 3
"""Releases with code for exceptions in `await`; its units at most; units at the start of a generator function."""
_RETURNS = (Do.RETURN, Do.END_GENERATOR)
_EXITS = (*_RETURNS, Do.RAISE, Do.RAISE_CLASS, Do.RAISE_AGAIN, Do.RERAISE)
_FEW_NAMES = 80
_FEW_VARIABLES = 16
_LONGEST_COPIED = 8


def far_instructions(code: Code, release: tuple[int, ...]) -> np.ndarray:
    """Returns for each instruction whether its place is above the small integers: 0, 1, or UNKNOWN."""
    far = np.zeros(len(code.instructions), np.int64)
    yields = np.flatnonzero(code.instructions["op"] == Do.YIELD)
    if release[:2] == (3, 12):
        far[yields] = code.instructions["argument"][yields]
    if release[:2] in _RELEASES and code.has_exceptions:
        for number, (first, end) in enumerate(function_bounds(code)):
            _mark(_Function(code, number, range(first, end), _RELEASES.index(release[:2])), far)
    if release[:2] in _CLEANED and (code.instructions["op"] == Do.SEND).any():
        for at, bounds in send_places(code, release).items():
            far[at + 1] = _is_far(*bounds)  # what is thrown goes to code for the end of the `await`
    return far


class _Function(NamedTuple):
    """A function of a program: its number, the places of its instructions, and the number of a release."""

    code: Code
    number: int
    places: range
    release: int


def send_places(code: Code, release: tuple[int, ...]) -> dict[int, tuple[int, int]]:
    """Returns for each SEND the least and the largest place that an exception leaves there: of code that CPython has
    after the function's other code."""
    found: dict[int, tuple[int, int]] = {}
    for number, (first, end) in enumerate(function_bounds(code)):
        function = _Function(code, number, range(first, end), _RELEASES.index(release[:2]))
        bounds = [_bounds(function, at) for at in function.places]
        is_long = sum(most for _, most, _ in bounds) > _LARGEST_SMALL - 2
        is_warm = code.layout[first:end] & COLD == 0
        low = sum(least for (least, _, _), warm in zip(bounds, is_warm, strict=True) if warm)
        high = _START + sum(most + (wide if is_long else 0) for _, most, wide in bounds)
        sends = [at for at in function.places if code.instructions[at]["op"] == Do.SEND]
        found |= {at: (low + 2 * index, high + 3 * index) for index, at in enumerate(sends)}
    return found


def _is_far(least: int, most: int) -> int:
    return 1 if least > _LARGEST_SMALL else UNKNOWN if most > _LARGEST_SMALL else 0


def _mark(function: _Function, far: np.ndarray) -> None:
    """Marks the instructions of a function."""
    layout, is_3_8 = function.code.layout, function.release == 0
    places = [*function.places]
    if _RELEASES[function.release] >= (3, 12):  # handlers are last
        places.sort(key=lambda at: (layout[at] & COLD, at))
    bounds = [_bounds(function, at) for at in places]
    unit = 2 if is_3_8 else 1
    is_long = unit * sum(most for _, most, _ in bounds) > _LARGEST_SMALL - 2
    has_closure = function.code.functions["free"][function.number] > 0
    is_generator = any(function.code.instructions[at]["op"] == Do.END_GENERATOR for at in places)
    low = high = 0 if is_3_8 else (_START if is_generator else 1) + int(has_closure)
    found: dict[int, tuple[int, int]] = {}
    sends = sum(function.code.instructions[at]["op"] == Do.SEND for at in places)
    cleaning = _CLEANING * sends if _RELEASES[function.release] in _CLEANED else 0
    for at, (least, most, wide) in zip(places, bounds, strict=True):
        if cleaning and layout[at] & COLD:  # before or among the handlers
            high, cleaning = high + cleaning, 0
        high += most + (wide if is_long else 0)
        found[at] = low, high
        low += least
    for at in places:
        for copied in _copied_by(function.code, at):
            found[copied] = min(found[copied][0], found[at][0]), max(found[copied][1], found[at][1] + _LONGEST_COPY)
    for at, (least, most) in found.items():
        far[at] = _is_far(unit * least, unit * most)


def _copied_by(code: Code, at: int) -> list[int]:
    """Returns the instructions up to a `return` or `raise` that CPython may copy to the place of a jump."""
    found: list[int] = []
    if code.instructions[at]["op"] != Do.JUMP or not _is_copied(code, int(code.instructions[at]["other"])):
        return found
    at = int(code.instructions[at]["other"])
    while code.instructions[at]["op"] not in _EXITS:
        is_jump = code.instructions[at]["op"] == Do.JUMP
        if not is_jump:
            found.append(at)
        at = int(code.instructions[at]["other"]) if is_jump else at + 1
    return [*found, at]


def _bounds(function: _Function, at: int) -> tuple[int, int, int]:
    """Returns the fewest and the most units of an instruction, and how many more it can have in a long function."""
    code, which = function.code, function.release
    row, flags = code.instructions[at], int(code.layout[at])
    do, is_3_8 = Do(row["op"]), which == 0
    if is_3_8 and flags & (RETURN_COPY | EXCEPTION_COPY) and do not in (Do.ENTER_FINALLY, Do.RERAISE):
        return 0, 0, 0  # 3.8 has one copy
    if flags & DEAD and not is_3_8:
        return 0, 0, 0
    tries = flags >> TRIES_BITS
    least, most = (tries, 3 * tries) if is_3_8 else (0, 2 * tries)
    if do == Do.JUMP:
        back = row["other"] <= at
        longest = 0 if back or not _is_copied(code, int(row["other"])) else _LONGEST_COPY
        return least + (_JUMP[which] if back or is_3_8 else 0), most + _JUMP[which] + longest, 1
    units, more = _exact(function, at, do), 0
    if do in _RETURNS or (do == Do.CONSTANT and code.instructions[at + 1]["op"] in (Do.UNWIND, *_RETURNS)):
        least -= units
    if _RELEASES[which] == (3, 13) and _may_be_merged(code, at):
        least -= units
    if do == Do.NEXT or (is_3_8 and do == Do.MATCH):
        most += 3
    if do in (Do.JUMP, *BRANCHES) or (do == Do.CONSTANT and len(function.places) > _LARGEST_SMALL):
        more += 1
    if units > 1 and len(code.attributes) + len(code.functions) + len(code.classes) > _FEW_NAMES:
        more += 2
    return least + units, most + units, more


def _may_be_merged(code: Code, at: int) -> bool:
    """Whether an instruction and the one before it may load two variables in one unit of CPython 3.13."""
    pair = code.instructions[at - 1 : at + 1].tolist() if at else [(Do.RETURN, 0)]
    return all(do == Do.LOAD and slot < _FEW_VARIABLES for do, slot, *_ in pair)


def _exact(function: _Function, at: int, do: Do) -> int:
    """Returns the units of an instruction without what depends on others."""
    code, which = function.code, function.release
    argument, units = int(code.instructions[at]["argument"]), _UNITS.get(do, (1,) * len(_RELEASES))[which]
    if do == Do.MATCH:
        count = argument >> CLASS_BITS & LENGTH_MASK
        more = _UNBIND_AND_RAISE[which] if argument & NAMED_BEFORE else 0
        return units + max(count, 1) * _GLOBAL[which] + (count > 0) + more
    if do in (Do.LIST_OF_CONSTANTS, Do.SET_OF_CONSTANTS) and which == 0:
        constant = code.constants[code.instructions[at - 1]["argument"]]
        return len(constant) if isinstance(constant, tuple) else 1
    if (do == Do.SET and argument == 0) or (do == Do.ITERATE and argument == IN_CALL):
        return _FUNCTION[which]
    if argument and do in (Do.LEAVE_HANDLER, Do.RERAISE):
        return units + (_UNBIND if do == Do.LEAVE_HANDLER else _UNBIND_AND_RAISE)[which]
    return units


def _is_copied(code: Code, at: int) -> bool:
    """Whether CPython may copy the code from here to a `return`."""
    for _ in range(_LONGEST_COPIED):
        do = code.instructions[at]["op"]
        if do in _EXITS:
            return True
        if do in BRANCHES:
            return False
        at = int(code.instructions[at]["other"]) if do == Do.JUMP else at + 1
    return False
