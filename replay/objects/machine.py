"""The machine that runs an object program: its records, its stack, and the mistakes that stop it."""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, leaf
from replay.objects.heap import Heap
from replay.objects.instructions import Do
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
    "expected a function or bound method",
    "the function has {limit} parameters, and is called with {value}",
    "{name!r} is a method of this object, and cannot be set",
    "expected an exception",
    "{name} is raised here, and has no handler",
    "a handler or `finally` is left here; what CPython {name} allocates for this depends on the exact length of the "
    "function's code: make the function shorter, or choose another release",
    "expected a lock",
    "no thread holds the lock",
    "expected a queue",
    "expected a generator",
    "the generator is already running",
    "the generator has ended",
    "in {name}, it is not known what is allocated if a generator is closed at this `yield` or `await`; move it to "
    "another function",
    "in 3.12 and 3.13, it is not known what a collection sees of a loop over generators and, at other times, others",
    "a coroutine cannot be awaited, and its steps cannot be taken, after it has ended",
    "the coroutine is awaited by another one already",
    "expected a coroutine, or a generator that can be awaited",
    "expected a coroutine",
    "a coroutine dies here that never ran, which CPython warns about: await it, take its steps, or close it before",
    "the coroutine returns a value here, which only `await` gets: its steps have none",
    "a coroutine that returns a tuple is not supported in 3.8 and 3.9; return a list",
    "a coroutine that returns a value to a handler is not supported in 3.8 and 3.9",
    "expected an instance of a class without slots, or with `weakref: true`",
    "expected a weak reference",
    "a generator yields here while it is being closed, which CPython does not allow",
    "an exception leaves a finalizer, a callback or a dying generator here, which CPython only prints; this is not "
    "supported yet",
    "StopIteration leaves a generator here, for which CPython raises a RuntimeError; this is not supported yet",
    "the program takes more than {limit:,} steps; if it ends, allow more with `limits: {{steps: …}}`",
)
(
    UNBOUND, NO_ATTRIBUTE, NO_VALUE, NOT_INT, TOO_LARGE, NOT_LIST, NOT_SEQUENCE, NO_ITEM, EMPTY, TOO_DEEP, NOT_MUTABLE,
    NOT_DICT, NOT_KEY, NO_KEY, NO_KEYS, DICT_CHANGED, NOT_SET, NOT_KEYED,
    NOT_FUNCTION, WRONG_COUNT, IS_METHOD, NOT_EXCEPTION, UNCAUGHT, CRITICAL_LENGTH, NOT_LOCK, NOT_HELD, NOT_QUEUE,
    NOT_GENERATOR, ALREADY_RUNNING, GENERATOR_ENDED, UNKNOWN_PLACE, MIXED_LOOP,
    AWAITED, AWAITED_ALREADY, NOT_AWAITABLE, NOT_COROUTINE, NEVER_RAN, RESULT_LOST,
    TUPLE_RETURNED, RETURNED_TO_HANDLER,
    NOT_REFERABLE, NOT_WEAKREF, IGNORES_EXIT, LEAVES_DYING, STOPS_GENERATOR,
    TOO_MANY_STEPS,
) = range(1, len(MISTAKES))  # fmt: skip
FRAME = record(
    "function", "at", "locals", "block", "room", "kept", "has_callee", "object", "generator", "closes", "handled",
    "handled_traceback",
)  # fmt: skip
"""`block`, `room`: its memory, up to 3.10. `kept`: number of arguments that the caller keeps, up to 3.10. `has_callee`:
whether the function or bound method that was called is on the stack, below the local variables. `object`: its frame
object, 0 for none. `generator`: what runs in the frame, if it is a generator. `closes`: whether this generator is being
closed: BY_CALL of `close`, or otherwise. `handled`, `handled_traceback`: what the caller of a generator handles; the
generator has its own."""
NESTED = record(
    "at", "checks", "is_over", "floor", "waiting", "phase", "ready", "ready_before", "unwinding", "region", "raised",
    "raised_class", "raised_at", "raised_traceback",
)  # fmt: skip
"""What a nested call interrupts: see `replay.objects.interruptions`."""
STATE = record(
    "at", "function", "locals", "top", "depth", "frames_kept", "random", "choices", "need", "is_over", "mistake",
    "value", "limit", "checks", "nested", "ended_frame", "unwinding", "region", "raised", "raised_class", "raised_at",
    "raised_traceback", "handled",
    "handled_traceback",
    "waits", "awaited", "delay_ns", "given", "granted", "yields", "collecting",
    "arguments", "callback", "boot", "thread_state", "handle",
    "next_arguments", "next_callback", "next_boot", "next_thread_state", "next_handle",
    "generators", "calls_nested", "end_call", "interrupted",
)  # fmt: skip
"""`need`: entries of the stack and of the items that one step can take at most. `checks`: whether CPython checks for a
requested collection now (from 3.12 on), and whether another thread wants the GIL. `nested`: number of calls of
`__init__`, each of which takes two levels of CPython's limit. `ended_frame`: stands for the frame that ends, up to
3.10. `unwinding`: what is next to do with the exception `raised`, 0 for none; `region`: the region that it leaves.
Up to 3.11, `raised` is 0 for an exception that was not created yet, of class `raised_class`, raised at `raised_at`.
`handled`: the exception whose handler runs. Both have a traceback of their own, the former up to 3.11, the latter up to
3.10.

Of programs with threads:
`waits`: what the last instruction has the scheduler do; `awaited`: the lock or queue, or the first instruction of a new
thread; `delay_ns`: a time; `given`: what the woken thread is `granted`: 1 for a lock, or an item.
`yields`: whether the thread drops the GIL at the next check. `collecting`: steps of collections.
`arguments`, a tuple, and the blocks `callback`, `boot`, `thread_state`, `handle`: of the thread, 0 for none; `next_…`:
of the thread that it starts.

`generators`: how many are running. `calls_nested`: whether the end of objects can run code of the program.
`end_call`: the instruction END_CALL, if there is one.
`interrupted`: number of nested calls that run."""
BY_CALL = 2
WARM = 8
"""Number of calls and jumps back after which 3.11 specialises the instructions of a function."""
FRAMES_KEPT = 200
"""Frames that CPython keeps for later calls, in addition to one of each function (up to 3.10)."""
NESTED_MAX = 1000
"""Nested calls at the same time. CPython has no limit but its C stack."""
DEPTH_MAX = 900
"""CPython's limit is 1000 calls, of which a program's start takes some."""
(
    CONSTANT, LOAD, STORE, DELETE, ATTRIBUTE, SET_ATTRIBUTE, LETTERS, MAKE_BYTES, HALF, SUM, PRODUCT, MAKE_TUPLE,
    MAKE_LIST, LIST_OF_CONSTANTS, NEW, CALL, UNWIND, RETURN, ITEM, SET_ITEM, LENGTH, APPEND, POP_LAST, CLEAR, DISCARD,
    MAKE_RANGE, ITERATE, NEXT, JUMP, CHOOSE, COLLECT, FOUND, SWITCH_COLLECTOR, MAKE_DICT, DICT_OF_CONSTANTS,
    DELETE_ITEM, FIRST_KEY, CONTAINS, MAKE_SET, SET_OF_CONSTANTS, ADD, DISCARD_ELEMENT,
    MAKE_CELL, LOAD_CELL, STORE_CELL, DELETE_CELL, LOAD_CLOSURE, MAKE_FUNCTION, MAKE_CLOSURE, CALL_VALUE, LOAD_METHOD,
    CALL_METHOD, MAKE_ARGUMENTS, CALL_INIT, END_INIT,
    ARGUMENTS, NEW_EXCEPTION, RAISE, RAISE_CLASS, MATCH, HANDLED, LEAVE_HANDLER, RERAISE, UNBIND,
    ENTER_FINALLY, LEAVE_FINALLY, RAISE_AGAIN,
    START, BEGIN_THREAD, LEAVE_THREAD, END_THREAD, MAKE_LOCK, MAKE_QUEUE, FILL_QUEUE, ACQUIRE, RELEASE, PUT, TAKE,
    SLEEP, WORK,
    MAKE_FRAME, MAKE_GENERATOR, YIELD, END_GENERATOR, NEXT_OF, CLOSE, AWAIT, SEND, YIELD_AGAIN, MAKE_STEPS,
    PACK_ARGUMENTS, MAKE_WEAKREF, REFERENT, IS_NONE, END_CALL,
) = map(int, Do)  # fmt: skip


@by_reference
class Machine(NamedTuple):
    """The heap; the code; `classes`: what their instances share; `slots`: the place of each attribute in each class;
    `methods`: the function of each method in each class, 0 for none; `stack`: local variables and values of all calls;
    `constants`: the objects of constants; `attributes`: the names of attributes, one after the other; `ints`: small
    integers. NONE, and the texts and bytes that exist once, follow them. `regions`: where exceptions have handlers;
    `region_of`: the region of each instruction; `far`: whether it is so far from the function's start that an integer
    object for its place is no small one. `nested`: what nested calls interrupt."""

    heap: Heap
    state: np.ndarray
    instructions: np.ndarray
    functions: np.ndarray
    classes: np.ndarray
    slots: np.ndarray
    methods: np.ndarray
    stack: np.ndarray
    frames: np.ndarray
    kept_frames: np.ndarray
    constants: np.ndarray
    attributes: np.ndarray
    ints: np.ndarray
    regions: np.ndarray
    region_of: np.ndarray
    far: np.ndarray
    nested: np.ndarray


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
