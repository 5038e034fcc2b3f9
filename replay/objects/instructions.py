"""The code of an object program: one instruction a step of the machine, as CPython's compiler would order them.

    CONSTANT k         pushes a constant; constants exist once, and allocate nothing
    LOAD slot          pushes a local variable; STORE pops one; DELETE unbinds one
    ATTRIBUTE k        replaces an instance by its attribute number k; SET_ATTRIBUTE k pops instance and value
    LETTERS, BYTES     replace a length by a new text or bytes of this length
    HALF, SUM, PRODUCT
    TUPLE n, LIST n    pop n values; LIST_OF_CONSTANTS pops a constant tuple
    NEW class          pushes an instance
    CALL function      pops the arguments; RETURN pops the result, and pushes it in the caller
    UNWIND             drops the iterator below the result
    ITEM, SET_ITEM, LENGTH, APPEND, POP_LAST, CLEAR
    DISCARD            pops a value
    RANGE n            pushes a range; ITERATE replaces a range, list or tuple by an iterator
    NEXT target        pushes the next item, or pops the iterator and jumps
    JUMP target
    COLLECT g          collects a generation; FOUND pushes the number of objects found; SWITCH_COLLECTOR s pushes None
    DICT n             pops n keys and values, in turn; DICT_OF_CONSTANTS pops n values and the constant tuple of keys
    SET n              pops n values; SET_OF_CONSTANTS j k pops a constant tuple; j, k: slots of the constant frozenset
    DELETE_ITEM, FIRST_KEY, ADD, DISCARD_ELEMENT
    CONTAINS           pops a key and a dict or set, and jumps to `other` if it does not have the key
    GENERATOR_FRAME f, GENERATOR f   pop the arguments, and push a generator: first its frame, then the object
    YIELD d            pops a value, and pushes it in the caller; d: see `_distances`. END_GENERATOR pops None
    NEXT_OF d          pops a generator, and a default if d is 1; pushes the generator's next value. CLOSE
    AWAIT              checks that the value on the stack can be awaited
    SEND               resumes the generator or iterator on the stack, and pushes what it yields. At its end, replaces
                       it by its result, and jumps to `other`
    YIELD_AGAIN        pops a value, and pushes it in the caller; continues with the SEND before it
    STEPS              replaces a tuple of a coroutine by an iterator that runs it
    CHOOSE steps       jumps to `other` unless a random byte is below `steps`
    MAKE_CELL s        moves a variable to a cell. The slots of cells are `argument` and, up to 3.10, `other`
    LOAD_CELL, STORE_CELL, DELETE_CELL
                       the same as LOAD, STORE and DELETE for the content of a cell; LOAD_CLOSURE pushes the cell
    MAKE_FUNCTION f    pushes a function; MAKE_CLOSURE f pops the tuple of its cells, and pushes it
    CALL_VALUE n       pops n arguments and a function or bound method, and calls it
    LOAD_METHOD k      replaces an instance by its method number k and itself, or by 0 and its attribute
    CALL_METHOD n      pops n arguments and these two, and calls the method
    MAKE_ARGUMENTS n   pushes places for two blocks, and a tuple of the n arguments of class `other`, or 0 for none
    CALL_INIT f        calls `__init__` with the instance on the stack and the `other` arguments below it
    END_INIT n         pops the result, the instance, and all that MAKE_ARGUMENTS pushed and found; pushes the instance
    ARGUMENTS n k      pops n values, and pushes the tuple of arguments for class k; of built-in classes up to 3.13
    NEW_EXCEPTION k n  pops n arguments, and pushes an exception of class k; IN_TUPLE: they are those of MAKE_ARGUMENTS
    RAISE 0 c          pops an exception and raises it; RAISE_CLASS k c raises a new one. c: whether its cause is popped
                       first
    MATCH classes      jumps to `other` unless the handled exception is one of these classes
    HANDLED            pushes the handled exception
    LEAVE_HANDLER v    ends a handler, and unbinds the variable v, if not 0: see `replay.objects.handlers`
    RERAISE            raises the handled exception again
    UNBIND v           unbinds a variable, if it is bound
    ENTER_FINALLY      pushes the place where CPython 3.8 continues after a `finally` that a `return` runs
    LEAVE_FINALLY      pops it
    RAISE_AGAIN        raises the handled exception again, as a statement
    START function     replaces a tuple of arguments by the number of a new thread, which starts at `other`
    BEGIN_THREAD       pushes the arguments; LEAVE_THREAD pops the result of the function; END_THREAD
    LOCK, QUEUE        push a new object; FILL_QUEUE allocates what belongs to the queue on the stack
    ACQUIRE, RELEASE   replace a lock by the result; PUT pops a queue and an item; TAKE replaces a queue by an item
    PACK_ARGUMENTS n   pushes a tuple of the n values on the stack, which remain
    WEAKREF n          pops it and the values, and pushes a weak reference to the first; the second is a callback
    REFERENT           replaces a weak reference by the object that it refers to
    IS_NONE            pops a value, and jumps to `other` unless it is None
    END_CALL           pops the result of a finalizer or callback, and continues where it was called
    SLEEP ns           pushes None, after so many ns; WORK ns computes for so long

The field `line` is the number of the statement: its place in the file is in `Code.places`.
"""

from enum import IntEnum, auto
from typing import NamedTuple, get_args

import numpy as np

from replay.jit.arrays import record
from replay.objects import language
from replay.objects.constants import Constant
from replay.objects.language import Program
from replay.support.yaml_documents import Location

INSTRUCTION = record("op", "argument", "other", "line", "runs")
"""`runs`: how often the machine has run the instruction."""
FUNCTION = record(
    "start",
    "parameters",
    "locals",
    "stack",
    "stack_3_8",
    "block",
    "room",
    "warmth",
    "free",
    "object_bytes",
    "slots",
    "coroutine",
)
"""`locals`: number of variables; the last `free` are the cells of the closure. `stack`: the largest number of values on
CPython's stack; it differs in 3.8. `block`, `room`: memory of the frame for the function's next call, and its number of
variables and values. `warmth`: calls and jumps back so far. `object_bytes`: size of a frame object, from 3.11 on.
`slots`: variables and values in a generator or frame object, from 3.11 on. `coroutine`: AWAITABLE for generators that
can be awaited, COROUTINE for coroutines, else 0."""
AWAITABLE, COROUTINE = 1, 2


class Do(IntEnum):
    """What an instruction does."""

    CONSTANT = 0
    LOAD = auto()
    STORE = auto()
    DELETE = auto()
    ATTRIBUTE = auto()
    SET_ATTRIBUTE = auto()
    LETTERS = auto()
    BYTES = auto()
    HALF = auto()
    SUM = auto()
    PRODUCT = auto()
    TUPLE = auto()
    LIST = auto()
    LIST_OF_CONSTANTS = auto()
    NEW = auto()
    CALL = auto()
    UNWIND = auto()
    RETURN = auto()
    ITEM = auto()
    SET_ITEM = auto()
    LENGTH = auto()
    APPEND = auto()
    POP_LAST = auto()
    CLEAR = auto()
    DISCARD = auto()
    RANGE = auto()
    ITERATE = auto()
    NEXT = auto()
    JUMP = auto()
    CHOOSE = auto()
    COLLECT = auto()
    FOUND = auto()
    SWITCH_COLLECTOR = auto()
    DICT = auto()
    DICT_OF_CONSTANTS = auto()
    DELETE_ITEM = auto()
    FIRST_KEY = auto()
    CONTAINS = auto()
    SET = auto()
    SET_OF_CONSTANTS = auto()
    ADD = auto()
    DISCARD_ELEMENT = auto()
    MAKE_CELL = auto()
    LOAD_CELL = auto()
    STORE_CELL = auto()
    DELETE_CELL = auto()
    LOAD_CLOSURE = auto()
    MAKE_FUNCTION = auto()
    MAKE_CLOSURE = auto()
    CALL_VALUE = auto()
    LOAD_METHOD = auto()
    CALL_METHOD = auto()
    MAKE_ARGUMENTS = auto()
    CALL_INIT = auto()
    END_INIT = auto()
    ARGUMENTS = auto()
    NEW_EXCEPTION = auto()
    RAISE = auto()
    RAISE_CLASS = auto()
    MATCH = auto()
    HANDLED = auto()
    LEAVE_HANDLER = auto()
    RERAISE = auto()
    UNBIND = auto()
    ENTER_FINALLY = auto()
    LEAVE_FINALLY = auto()
    RAISE_AGAIN = auto()
    START = auto()
    BEGIN_THREAD = auto()
    LEAVE_THREAD = auto()
    END_THREAD = auto()
    LOCK = auto()
    QUEUE = auto()
    FILL_QUEUE = auto()
    ACQUIRE = auto()
    RELEASE = auto()
    PUT = auto()
    TAKE = auto()
    SLEEP = auto()
    WORK = auto()
    GENERATOR_FRAME = auto()
    GENERATOR = auto()
    YIELD = auto()
    END_GENERATOR = auto()
    NEXT_OF = auto()
    CLOSE = auto()
    AWAIT = auto()
    SEND = auto()
    YIELD_AGAIN = auto()
    STEPS = auto()
    PACK_ARGUMENTS = auto()
    WEAKREF = auto()
    REFERENT = auto()
    IS_NONE = auto()
    END_CALL = auto()


SWITCHES = get_args(language.SwitchCollector.model_fields["collector"].annotation)
"""What SWITCH_COLLECTOR can do, by its argument: disable, enable, freeze, unfreeze."""
SMALL_PLACE = 256
"""The largest integer that exists once in 3.12."""
EXCEPTIONAL = -2
"""Instead of the number of slots: instances of the class are exceptions."""
IN_TUPLE = -1
"""`other` of NEW_EXCEPTION before a call of `__init__`."""
IN_CALL, IN_DELEGATION = 1, 2
"""Argument of ITERATE for a call of `iter`, and `other` of NEW before a call of `__init__`; argument of ITERATE for
`yield from`."""
SLOT_BITS = 20
"""Of MAKE_CELL: `other` is a slot, and above these bits the parameter that is moved to it, counted from 1."""
MORE = {Do.HALF: 1, Do.POP_LAST: 1, Do.CLEAR: 1, Do.LENGTH: 1, Do.NEW: 1, Do.RANGE: 2, Do.CHOOSE: 2,
         Do.COLLECT: 3, Do.SWITCH_COLLECTOR: 2, Do.MAKE_FUNCTION: 2, Do.MAKE_CLOSURE: 2,
         Do.LOCK: 1, Do.QUEUE: 1, Do.ACQUIRE: 1, Do.RELEASE: 1, Do.TAKE: 1, Do.SLEEP: 2,
         Do.CLOSE: 1, Do.SEND: 1, Do.STEPS: 1, Do.IS_NONE: 1}  # fmt: skip
"""Values that CPython has on the stack for a while: a function, a method, a constant."""
_PUSHED = {Do.CONSTANT, Do.LOAD, Do.NEW, Do.RANGE, Do.NEXT, Do.FOUND, Do.SWITCH_COLLECTOR, Do.LOAD_CELL,
           Do.LOAD_CLOSURE, Do.MAKE_FUNCTION, Do.LOAD_METHOD, Do.HANDLED, Do.ENTER_FINALLY, Do.LOCK, Do.QUEUE,
           Do.SLEEP, Do.PACK_ARGUMENTS}  # fmt: skip
_POPPED = {Do.STORE: 1, Do.SUM: 1, Do.PRODUCT: 1, Do.UNWIND: 1, Do.RETURN: 1, Do.ITEM: 1, Do.DISCARD: 1, Do.CLEAR: 1,
           Do.SET_ATTRIBUTE: 2, Do.APPEND: 2, Do.SET_ITEM: 3, Do.DELETE_ITEM: 2, Do.CONTAINS: 2, Do.ADD: 2,
           Do.DISCARD_ELEMENT: 2, Do.STORE_CELL: 1, Do.RAISE: 1, Do.LEAVE_FINALLY: 1, Do.PUT: 2, Do.YIELD: 1,
           Do.END_GENERATOR: 1, Do.CLOSE: 1, Do.IS_NONE: 1, Do.END_CALL: 1}  # fmt: skip


def effect(do: Do, argument: int, program: Program) -> int:
    """Returns by how much an instruction changes the number of values on the stack."""
    if do in (Do.TUPLE, Do.LIST, Do.SET):
        return 1 - argument
    if do == Do.DICT:
        return 1 - 2 * argument
    if do == Do.DICT_OF_CONSTANTS:
        return -argument
    if do in (Do.NEXT_OF, Do.WEAKREF):
        return -argument
    if do in (Do.CALL_VALUE, Do.CALL_METHOD):
        return -argument - (do == Do.CALL_METHOD)
    if do in (Do.CALL, Do.GENERATOR):
        return 1 - len([*program.functions.values()][argument].parameters)
    return 1 if do in _PUSHED else -_POPPED.get(do, 0)


class Code(NamedTuple):
    """The code of a program.

    `classes`: the number of slots of each class, -1 for instances with a dict, EXCEPTIONAL for exceptions. `slots`: the
    slot of each attribute in each class, -1 for none. `methods`: the function of each method in each class, -1 for
    none. `own`: the attributes that methods of each class assign to `self`, in order of name.
    """

    instructions: np.ndarray
    functions: np.ndarray
    classes: np.ndarray
    slots: np.ndarray
    methods: np.ndarray
    own: list[list[int]]
    region_of: np.ndarray
    """The region of each instruction."""
    regions: np.ndarray
    """Of type REGION. The first is none."""
    constants: list["Constant"]
    places: list[Location]
    """Where each statement is in the file."""
    attributes: list[str]
    names: list[list[str]]
    """The local variables of each function, in the order of their slots."""
    layout: np.ndarray
    """Flags of each instruction: see `replay.objects.handlers`."""
    positions: list[tuple[int, ...]]
    """Of each instruction, in the order in which CPython 3.8 compiles them."""
    function_slots: dict[tuple[int, int], list[int]]
    """The number of variables and values of each function in CPython, by release from 3.11 on, if the program has
    exceptions or generators."""
    finalizers: list[int]
    """The function that finalizes instances of each class, -1 for none."""
    end_call: int = 0
    """The instruction END_CALL, if the program has finalizers or weak references."""
    has_threads: bool = False
    """Whether the program has statements about threads, or takes time."""

    @property
    def has_exceptions(self) -> bool:
        return len(self.regions) > 1

    @property
    def runs_when_closed(self) -> bool:
        """Whether generators can have statements that run while they are closed."""
        return self.has_exceptions and bool((self.instructions["op"] == Do.END_GENERATOR).any())
