"""The machine that runs an object program: its records, its stack, and the mistakes that stop it."""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, leaf
from replay.objects.code import Do
from replay.objects.heap import Heap
from replay.objects.rules import AFTER_FIRST_RUN, ALWAYS, IN_WARM_CODE

FAILED = 2
NONE, NO_LETTERS, LETTER, BYTE = range(4)
"""Objects that exist once, counted from the one after the small integers."""
MISTAKES = (
    "",
    "the variable {name!r} is not bound",
    "this object has no attribute {name!r}",
    "the attribute {name!r} has no value yet",
    "expected an integer",
    "the integer exceeds the largest one, {largest}",
    "expected a list",
    "expected a list, tuple or dict",
    "the index {value} is not below the length, {limit}",
    "the list is empty",
    "calls are nested more than {limit} deep",
    "expected a list or dict",
    "expected a dict",
    "a key is an integer or a text",
    "the dict has no key {name}",
    "the dict is empty",
    "the dict has other keys than at the start of the loop over it",
    "expected a set",
    "expected a dict or set",
    "expected a generator",
    "the generator is already running",
    "the generator has ended",
    "in 3.12, it is not known what is allocated if a generator is closed at this `yield`; move it to another function",
    "in 3.12 and 3.13, it is not known what a collection sees of a loop over generators and, at other times, others",
)
(
    UNBOUND, NO_ATTRIBUTE, NO_VALUE, NOT_INT, TOO_LARGE, NOT_LIST, NOT_SEQUENCE, NO_ITEM, EMPTY, TOO_DEEP, NOT_MUTABLE,
    NOT_DICT, NOT_KEY, NO_KEY, NO_KEYS, DICT_CHANGED, NOT_SET, NOT_KEYED, NOT_GENERATOR, ALREADY_RUNNING,
    GENERATOR_ENDED, UNKNOWN_PLACE, MIXED_LOOP,
) = range(1, len(MISTAKES))  # fmt: skip
FRAME = record("function", "at", "locals", "block", "room", "generator")
"""`block`, `room`: memory of the frame, up to 3.10; in 3.12 `block` is the frame object, if there is one. `generator`:
the generator that runs in the frame, 0 for none."""
STATE = record(
    "at", "function", "locals", "top", "depth", "frames_kept", "random", "choices", "need", "is_over", "mistake",
    "value", "limit", "checks", "generators", "closing_frame",
)  # fmt: skip
"""`need`: entries of the stack and of the items that one step can take at most. `checks`: whether CPython checks for a
requested collection now (from 3.12 on). `generators`: how many are running. `closing_frame`: the frame of the generator
that is being closed, while it is the running one (up to 3.12)."""
WARM = 8
"""Number of calls and jumps back after which 3.11 specialises the instructions of a function."""
FRAMES_KEPT = 200
"""Frames that CPython keeps for later calls, in addition to one of each function (up to 3.10)."""
DEPTH_MAX = 900
"""CPython's limit is 1000 calls, of which a program's start takes some."""
(
    CONSTANT, LOAD, STORE, DELETE, ATTRIBUTE, SET_ATTRIBUTE, LETTERS, MAKE_BYTES, HALF, SUM, PRODUCT, MAKE_TUPLE,
    MAKE_LIST, LIST_OF_CONSTANTS, NEW, CALL, UNWIND, RETURN, ITEM, SET_ITEM, LENGTH, APPEND, POP_LAST, CLEAR, DISCARD,
    MAKE_RANGE, ITERATE, NEXT, JUMP, CHOOSE, COLLECT, FOUND, SWITCH_COLLECTOR, MAKE_DICT, DICT_OF_CONSTANTS,
    DELETE_ITEM, FIRST_KEY, CONTAINS, MAKE_SET, SET_OF_CONSTANTS, ADD, DISCARD_ELEMENT,
    MAKE_FRAME, MAKE_GENERATOR, YIELD, END_GENERATOR, NEXT_OF, CLOSE,
) = map(int, Do)  # fmt: skip


@by_reference
class Machine(NamedTuple):
    """The heap; the code; `classes`: what their instances share; `slots`: the place of each attribute in each class;
    `stack`: local variables and values of all calls; `constants`: the objects of constants; `attributes`: the names of
    attributes, one after the other; `ints`: small integers. NONE, and the texts and bytes that exist once, follow
    them."""

    heap: Heap
    state: np.ndarray
    instructions: np.ndarray
    functions: np.ndarray
    classes: np.ndarray
    slots: np.ndarray
    stack: np.ndarray
    frames: np.ndarray
    kept_frames: np.ndarray
    constants: np.ndarray
    attributes: np.ndarray
    ints: np.ndarray


@leaf
def push(machine, number):
    state = machine.state[0]
    machine.stack[state.top] = number
    state.top += 1


@leaf
def pop(machine):
    state = machine.state[0]
    state.top -= 1
    return np.int64(machine.stack[state.top])


@leaf
def fail(machine, mistake, value, limit):
    state = machine.state[0]
    state.mistake, state.value, state.limit = mistake, value, limit
    return False


@leaf
def applies(machine, rule):
    """Whether a rule that depends on specialisation applies to this run of the instruction."""
    state = machine.state[0]
    if rule == AFTER_FIRST_RUN:
        return machine.instructions[state.at - 1].runs > 1
    return rule == ALWAYS or (rule == IN_WARM_CODE and machine.functions[state.function].warmth >= WARM)
