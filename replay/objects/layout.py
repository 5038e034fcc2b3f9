"""Where CPython's compiler has the code of handlers, and in which order it numbers variables, as far as it matters.

3.8     numbers the variables of `finally` before those of `try`
3.12    has handlers at the end of a function, so that their end jumps back; this checks for a collection. It copies
        a short `return` instead of jumping to it
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from replay.jit.arrays import copied
from replay.objects.handlers import COLD, DEAD, HAS_RESULT, IN_CELL, JUMPS_BACK, NAME
from replay.objects.instructions import Code, Do

BRANCHES = (Do.NEXT, Do.CHOOSE, Do.CONTAINS, Do.MATCH, Do.IS_NONE, Do.SEND)
ENDS = (Do.JUMP, Do.RETURN, Do.END_GENERATOR, Do.RAISE, Do.RAISE_CLASS, Do.RAISE_AGAIN, Do.RERAISE)
"""Instructions that do not continue with the next one."""
_IN_3_12 = {
    Do.LETTERS: 2, Do.BYTES: 2, Do.HALF: 2, Do.LIST_OF_CONSTANTS: 2, Do.SET_OF_CONSTANTS: 2, Do.NEW: 2, Do.CALL: 2,
    Do.UNWIND: 2, Do.LENGTH: 2, Do.APPEND: 3, Do.POP_LAST: 2, Do.CLEAR: 3, Do.ADD: 3, Do.DISCARD_ELEMENT: 3,
    Do.COLLECT: 4, Do.FOUND: 0, Do.SWITCH_COLLECTOR: 3, Do.FIRST_KEY: 3, Do.NEW_EXCEPTION: 2, Do.RAISE_CLASS: 2,
    Do.LEAVE_HANDLER: 4, Do.ARGUMENTS: 0, Do.MAKE_FUNCTION: 2, Do.MAKE_CLOSURE: 2, Do.CALL_VALUE: 2,
    Do.MAKE_ARGUMENTS: 0, Do.CALL_INIT: 0, Do.END_INIT: 0, Do.START: 3, Do.ACQUIRE: 2, Do.RELEASE: 2, Do.PUT: 3,
    Do.TAKE: 2, Do.SLEEP: 3, Do.LOCK: 2, Do.QUEUE: 2, Do.FILL_QUEUE: 0,
    Do.GENERATOR_FRAME: 0, Do.GENERATOR: 2, Do.YIELD: 3, Do.NEXT_OF: 2, Do.CLOSE: 3,
    Do.PACK_ARGUMENTS: 0, Do.WEAKREF: 2, Do.REFERENT: 2,
}  # fmt: skip
"""Number of CPython 3.12's instructions for one, if not 1."""
_LONGEST_COPY = 4
"""Instructions that CPython's compiler copies instead of jumping to them, if a `return` is the last."""
Instructions = list[tuple[int, ...]]


def arranged(code: Code, release: tuple[int, ...]) -> Code:
    """Returns the code as the compiler of a release arranges it."""
    if not code.has_exceptions:
        return code
    code = code._replace(instructions=copied(code.instructions), layout=code.layout.copy(), regions=code.regions.copy())
    _mark_cold(code)
    if release[:2] == (3, 12):
        _mark_jumps_back(code)
    return _with_slots_of_3_8(code) if release[:2] == (3, 8) else code


def function_bounds(code: Code) -> Iterator[tuple[int, int]]:
    """Yields the first instruction of each function, and the end."""
    return pairwise([*code.functions["start"].tolist(), len(code.instructions)])


def _mark_cold(code: Code) -> None:
    """Marks the instructions that run after an exception only, and those that never run."""
    instructions = code.instructions.tolist()
    reached: set[int] = set()
    _walk(instructions, {*code.functions["start"].tolist()}, reached)
    code.layout[[at for at in range(len(instructions)) if at not in reached]] |= COLD
    handlers = {0}
    while handlers:
        handlers = {target for at in reached for target in _targets(code, at)} - reached
        _walk(instructions, {*handlers}, reached)
    code.layout[[at for at in range(len(instructions)) if at not in reached]] |= DEAD


def _walk(instructions: Instructions, waiting: set[int], reached: set[int]) -> None:
    """Adds to `reached` the instructions that can run after the first of those that wait."""
    while waiting:
        at = waiting.pop()
        if at in reached:
            continue
        reached.add(at)
        do, _, other, *_ = instructions[at]
        if do == Do.JUMP or do in BRANCHES:
            waiting.add(other)
        if do not in ENDS:
            waiting.add(at + 1)


def _targets(code: Code, at: int) -> Iterator[int]:
    """Yields the handlers of an instruction."""
    region = code.region_of[at]
    while region:
        if code.regions[region]["target"]:
            yield int(code.regions[region]["target"])
        region = code.regions[region]["outer"]


def _mark_jumps_back(code: Code) -> None:
    """Marks the ends of handlers at which CPython 3.12 jumps back."""
    instructions = code.instructions.tolist()
    targets = {other for do, _, other, *_ in instructions if do == Do.JUMP or do in BRANCHES}
    for at, (do, _, flags, *_) in enumerate(instructions):
        if do == Do.LEAVE_HANDLER and not flags & HAS_RESULT and instructions[at + 1][0] == Do.JUMP:
            end = instructions[at + 1][2]
            if not code.layout[end] & COLD and not _is_copied(instructions, end, targets):
                code.instructions["other"][at] |= JUMPS_BACK


def _is_copied(instructions: Instructions, at: int, targets: set[int]) -> bool:
    """Whether CPython 3.12 copies the code from here to a `return` or `raise`, instead of jumping to it."""
    length, is_start, has_constant = 0, True, False
    while length <= _LONGEST_COPY:
        do, argument, other, *_ = instructions[at]
        if do == Do.JUMP:
            if other <= at:
                return False
            at, is_start = other, True
            continue
        if do in BRANCHES or (at in targets and not is_start):
            return False
        at, is_start = at + 1, False
        if do in (Do.RETURN, Do.END_GENERATOR):
            return length + (not has_constant) <= _LONGEST_COPY
        has_constant = do == Do.CONSTANT or (has_constant and do == Do.UNWIND)
        length += _IN_3_12.get(Do(do), 1) - (has_constant and do == Do.UNWIND) + (do == Do.SET and argument == 0)
        if do in (Do.RAISE, Do.RAISE_CLASS, Do.RAISE_AGAIN):
            return length <= _LONGEST_COPY
    return False


def _with_slots_of_3_8(code: Code) -> Code:
    """Returns the code with the order of local variables of CPython 3.8."""
    names = []
    for (first, end), function, own in zip(function_bounds(code), code.functions, code.names, strict=True):
        part, order = code.instructions[first:end], [*range(function["parameters"])]
        for at in sorted(range(first, end), key=code.positions.__getitem__):
            do, slot, *_ = code.instructions[at].tolist()
            if do in (Do.LOAD, Do.STORE, Do.DELETE):
                order.append(slot)
        order = [*dict.fromkeys(order)]
        names.append([own[slot] for slot in order])
        slots = np.argsort(order)
        for do, less in ((Do.LOAD, 0), (Do.STORE, 0), (Do.DELETE, 0), (Do.UNBIND, 1), (Do.LEAVE_HANDLER, 1)):
            chosen = (part["op"] == do) & (part["argument"] >= less) & (part["argument"] < IN_CELL)
            part["argument"][chosen] = slots[part["argument"][chosen] - less] + less
        inside = np.unique(code.region_of[first:end])
        chosen = inside[(code.regions["kind"][inside] == NAME) & (code.regions["variable"][inside] < IN_CELL)]
        code.regions["variable"][chosen] = slots[code.regions["variable"][chosen] - 1] + 1
    return code._replace(names=names)
