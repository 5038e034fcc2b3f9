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
    ARGUMENTS n        pops n values, and pushes the tuple of arguments; up to 3.13
    NEW_EXCEPTION k n  pops n arguments, and pushes an exception of class k
    RAISE              pops and raises an exception; RAISE_CLASS k raises a new one
    MATCH classes      jumps to `other` unless the handled exception is one of these classes
    HANDLED            pushes the handled exception
    LEAVE_HANDLER v    ends a handler, and unbinds the variable v - 1, if not 0
    RERAISE            raises the handled exception again
    UNBIND slot        unbinds a variable, if it is bound
    ENTER_FINALLY      pushes the place where CPython 3.8 continues after a `finally` that a `return` runs
    LEAVE_FINALLY      pops it
    RAISE_AGAIN        raises the handled exception again, as a statement
    START function     replaces a tuple of arguments by the number of a new thread, which starts at `other`
    BEGIN_THREAD       pushes the arguments; LEAVE_THREAD pops the result of the function; END_THREAD
    LOCK, QUEUE        push a new object; FILL_QUEUE allocates what belongs to the queue on the stack
    ACQUIRE, RELEASE   replace a lock by the result; PUT pops a queue and an item; TAKE replaces a queue by an item
    SLEEP ns           pushes None, after so many ns; WORK ns computes for so long

The field `line` is the number of the statement: its place in the file is in `Code.places`.
"""

from enum import IntEnum, auto
from functools import singledispatchmethod
from typing import NamedTuple, get_args

import numpy as np

from replay.jit.arrays import record
from replay.objects import language
from replay.objects.attributes import attributes, clashes, own_attributes
from replay.objects.code_units import yield_places
from replay.objects.combinations import unsupported
from replay.objects.constants import Constant, FunctionValue, is_constant, number_of, value_of
from replay.objects.frozensets import frozenset_slots
from replay.objects.handlers import (
    CATCH,
    DEPTH,
    EXCEPTION_COPY,
    FINALLY,
    FINALLY_VALUES,
    HANDLER,
    HANDLER_VALUES,
    LOOP,
    NAME,
    REGION,
    RETURN_COPY,
    TARGET,
    TRIES_BITS,
    VARIABLE,
    Block,
    exception_index,
    matching,
)
from replay.objects.language import INIT, SELF, Expression, Program, Statement
from replay.objects.scopes import Scope, find_cells
from replay.objects.stack_sizes import UnknownFormError, stack_size
from replay.objects.twin import CHOICE_STEPS
from replay.support.names import nearest
from replay.support.yaml_documents import Location, Problem

INSTRUCTION = record("op", "argument", "other", "line", "runs")
"""`runs`: how often the machine has run the instruction."""
FUNCTION = record(
    "start", "parameters", "locals", "stack", "stack_3_8", "block", "room", "warmth", "free", "object_bytes", "slots"
)
"""`locals`: number of variables; the last `free` are the cells of the closure. `stack`: the largest number of values on
CPython's stack; it differs in 3.8. `block`, `room`: memory of the frame for the function's next call, and its number of
variables and values. `warmth`: calls and jumps back so far. `object_bytes`: size of a frame object, from 3.11 on.
`slots`: variables and values in a generator or frame object, from 3.11 on."""


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


SWITCHES = get_args(language.SwitchCollector.model_fields["collector"].annotation)
"""What SWITCH_COLLECTOR can do, by its argument: disable, enable, freeze, unfreeze."""
SMALL_PLACE = 256
"""The largest integer that exists once in 3.12."""
IN_CALL = 1
"""Argument of ITERATE for a call of `iter`, and `other` of NEW before a call of `__init__`."""
SLOT_BITS = 20
"""Of MAKE_CELL: `other` is a slot, and above these bits the parameter that is moved to it, counted from 1."""
_MORE = {Do.HALF: 1, Do.POP_LAST: 1, Do.CLEAR: 1, Do.LENGTH: 1, Do.NEW: 1, Do.RANGE: 2, Do.CHOOSE: 2,
         Do.COLLECT: 3, Do.SWITCH_COLLECTOR: 2, Do.MAKE_FUNCTION: 2, Do.MAKE_CLOSURE: 2,
         Do.LOCK: 1, Do.QUEUE: 1, Do.ACQUIRE: 1, Do.RELEASE: 1, Do.TAKE: 1, Do.SLEEP: 2,
         Do.CLOSE: 1}  # fmt: skip
"""Values that CPython has on the stack for a while: a function, a method, a constant."""
_PUSHED = {Do.CONSTANT, Do.LOAD, Do.NEW, Do.RANGE, Do.NEXT, Do.FOUND, Do.SWITCH_COLLECTOR, Do.LOAD_CELL,
           Do.LOAD_CLOSURE, Do.MAKE_FUNCTION, Do.LOAD_METHOD, Do.HANDLED, Do.ENTER_FINALLY, Do.LOCK, Do.QUEUE,
           Do.SLEEP}  # fmt: skip
_POPPED = {Do.STORE: 1, Do.SUM: 1, Do.PRODUCT: 1, Do.UNWIND: 1, Do.RETURN: 1, Do.ITEM: 1, Do.DISCARD: 1, Do.CLEAR: 1,
           Do.SET_ATTRIBUTE: 2, Do.APPEND: 2, Do.SET_ITEM: 3, Do.DELETE_ITEM: 2, Do.CONTAINS: 2, Do.ADD: 2,
           Do.DISCARD_ELEMENT: 2, Do.STORE_CELL: 1, Do.RAISE: 1, Do.LEAVE_FINALLY: 1, Do.PUT: 2, Do.YIELD: 1,
           Do.END_GENERATOR: 1, Do.CLOSE: 1}  # fmt: skip


def _effect(do: Do, argument: int, program: Program) -> int:
    """Returns by how much an instruction changes the number of values on the stack."""
    if do in (Do.TUPLE, Do.LIST, Do.SET):
        return 1 - argument
    if do == Do.DICT:
        return 1 - 2 * argument
    if do == Do.DICT_OF_CONSTANTS:
        return -argument
    if do == Do.NEXT_OF:
        return -argument
    if do in (Do.CALL_VALUE, Do.CALL_METHOD):
        return -argument - (do == Do.CALL_METHOD)
    if do in (Do.CALL, Do.GENERATOR):
        return 1 - len([*program.functions.values()][argument].parameters)
    return 1 if do in _PUSHED else -_POPPED.get(do, 0)


class Code(NamedTuple):
    """The code of a program.

    `classes`: the number of slots of each class, -1 for instances with a dict. `slots`: the slot of each attribute in
    each class, -1 for none. `methods`: the function of each method in each class, -1 for none. `own`: the attributes
    that methods of each class assign to `self`, in order of name.
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
    stack_sizes: dict[tuple[int, int], list[int]]
    """The stack size of each function in CPython, by release from 3.11 on, if the program has generators."""
    has_threads: bool = False
    """Whether the program has statements about threads, or takes time."""

    @property
    def has_exceptions(self) -> bool:
        return len(self.regions) > 1


def compile_program(program: Program) -> tuple[Code | None, list[Problem]]:
    """Returns the code of a program, `main` last of its functions; or what is wrong with it."""
    return _Compiler(program).compile()


class _Compiler:
    """Compiles the functions of a program one after the other."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._functions = [*program.functions]
        self._generators = {name for name, each in program.functions.items() if has_yield(each.do)}
        self._classes = [*program.classes]
        self._attributes = attributes(program)
        self._scopes = [
            Scope(("functions", name, "do"), each.parameters, each.do) for name, each in program.functions.items()
        ]
        for name, kind in program.classes.items():
            self._scopes += [
                Scope(("classes", name, "methods", method, "do"), [SELF, *each.parameters], each.do, name=method)
                for method, each in kind.methods.items()
            ]
        self._scope = Scope(("main",), [], program.main)
        self._scopes.append(self._scope)
        self._surveys = True
        self._restart()

    def _restart(self) -> None:
        self._instructions: list[tuple[int, int, int, int, int]] = []
        self._constants: list[Constant] = []
        self._places: list[Location] = []
        self._locals: dict[str, int] = {}
        self._names: list[list[str]] = []
        self._problems: list[Problem] = []
        self._stack_sizes: dict[tuple[int, int], list[int]] = {}
        self._is_generator = False
        self._depth = self._deepest = self._deepest_3_8 = 0
        self._regions: list[list[int]] = [[0] * 5]
        self._region_of: list[int] = []
        self._region = 0
        self._blocks: list[Block] = []
        self._position: tuple[int, ...] = ()
        self._positions: list[tuple[int, ...]] = []
        self._layout_now = self._tries = self._handlers = 0
        self._layout: list[int] = []
        self._starts: list[int] = []
        self._has_threads = False

    def compile(self) -> tuple[Code | None, list[Problem]]:
        if problems := [*unsupported(self._program)]:
            return None, problems
        main = self._scope
        for scope in self._scopes:  # a first pass finds more of them
            self._function(scope)
        self._scopes.remove(main)
        self._scopes.append(main)
        for number, scope in enumerate(self._scopes):
            scope.number = number
        find_cells(self._scopes)
        self._surveys = False
        self._restart()
        self._problems += [
            Problem(("classes", name), "is the name of a function too")
            for name in self._classes
            if name in self._functions
        ]
        self._problems += clashes(self._program)
        functions = [self._function(scope) for scope in self._scopes]
        self._add_threads()
        if self._problems:
            return None, self._problems
        kinds = [kind.slots and sorted(kind.slots) for kind in self._program.classes.values()]  # CPython sorts them
        slots = [[kind.index(name) if kind and name in kind else -1 for name in self._attributes] for kind in kinds]
        code = Code(
            np.array(self._instructions, INSTRUCTION),
            np.array(functions, FUNCTION),
            np.array([len(kind) if kind else -1 for kind in kinds], np.int64),
            np.array(slots, np.int64).reshape(len(slots), len(self._attributes)),
            self._methods(),
            [[self._attributes.index(name) for name in own] for own in own_attributes(self._program)],
            np.array(self._region_of, np.int64),
            np.array([tuple(region) for region in self._regions], REGION),
            self._constants,
            self._places,
            self._attributes,
            self._names,
            np.array(self._layout, np.int64),
            self._positions,
            self._stack_sizes,
            self._has_threads,
        )
        return code, []

    def _function(self, scope: Scope) -> tuple[int, ...]:
        """Compiles a function and returns its FUNCTION."""
        self._scope, start = scope, len(self._instructions)
        self._depth, self._deepest, self._deepest_3_8 = 0, 0, 0
        self._locals = {name: slot for slot, name in enumerate(scope.parameters)}
        if len(self._locals) < len(scope.parameters):
            self._problems.append(Problem((*scope.place[:-1], "parameters"), "two have the same name"))
        self._problems += [
            Problem((*scope.place[:-1], "nonlocal"), f"{name!r} is a variable of no function around this one")
            for name in scope.nonlocals
            if name not in scope.free and not self._surveys
        ]
        self._is_generator = not scope.name and scope.place[0] == "functions" and scope.place[1] in self._generators
        self._yield_distances = iter(self._distances(scope.body) if self._is_generator else [])
        if self._generators and not self._surveys:
            self._add_stack_sizes(scope.body, scope.place)
        self._make_cells()
        self._block(scope.body, scope.place)
        self._constant(None)
        self._emit(Do.END_GENERATOR if self._is_generator else Do.RETURN)
        self._names.append([*self._locals, *scope.cells, *scope.free])
        count = len(scope.fast) + len(scope.cells) + len(scope.free)
        stack = self._deepest, self._deepest_3_8
        return start, len(scope.parameters), count, *stack, 0, 0, 0, len(scope.free), 0, 0

    def _make_cells(self) -> None:
        """Emits the instructions that create the cells of a function, in the order of both ranges of releases."""
        scope = self._scope
        now = sorted(scope.cells, key=lambda name: self._cell(name)[0])
        for name, name_3_10 in zip(now, scope.cells, strict=True):
            source = scope.parameters.index(name_3_10) + 1 if name_3_10 in scope.parameters else 0
            self._emit(Do.MAKE_CELL, self._cell(name)[0], self._cell(name_3_10)[1] + (source << SLOT_BITS))

    def _cell(self, name: str) -> tuple[int, int]:
        """Returns the slot of a cell from 3.11 on, and that up to 3.10."""
        scope = self._scope
        own = len(scope.fast) + [*scope.cells, *scope.free].index(name)
        return scope.parameters.index(name) if name in scope.parameters else own, own

    def _in_cell(self, name: str) -> bool:
        return name in self._scope.cells or name in self._scope.free

    def _methods(self) -> np.ndarray:
        """Returns the function of each method in each class."""
        found = np.full((len(self._classes), len(self._attributes)), -1, np.int64)
        for scope in self._scopes:
            if scope.method and scope.method != INIT:
                found[self._classes.index(str(scope.place[1])), self._attributes.index(scope.method)] = scope.number
        return found

    def _add_stack_sizes(self, body: list[Statement], place: Location) -> None:
        """Notes the stack size of a function in CPython, by release."""
        try:
            for release in ((3, minor) for minor in range(11, 16)):
                size = stack_size(body, release, self._is_generator)
                self._stack_sizes.setdefault(release, []).append(size)
        except UnknownFormError as error:
            self._problems.append(Problem(place, f"{error} is not supported in a program with generators"))

    def _distances(self, body: list[Statement]) -> list[int]:
        """Returns for each `yield` whether an integer of its place is a new object in 3.12: 0 if not, 1 if so, 2 if
        that is not known."""
        try:
            places = yield_places(body)
        except UnknownFormError:  # reported with the stack sizes
            return []
        far = [(place.least > SMALL_PLACE, place.largest > SMALL_PLACE) for place in places]
        return [int(least) if least == largest else 2 for least, largest in far]

    def _emit(self, do: Do, argument: int = 0, other: int = 0) -> int:
        self._reach(_MORE.get(do, 0))
        self._depth += _effect(do, argument, self._program)
        self._reach(0)
        self._instructions.append((int(do), argument, other, len(self._places) - 1, 0))
        self._region_of.append(self._region)
        self._layout.append(self._layout_now | self._tries << TRIES_BITS)
        self._tries = 0
        self._positions.append((*self._position, len(self._instructions)))
        return len(self._instructions) - 1

    def _constant(self, value: Constant) -> None:
        self._constants.append(value)
        self._emit(Do.CONSTANT, len(self._constants) - 1)

    def _reach(self, more: int, more_3_8: int | None = None) -> None:
        """Notes that CPython's stack has so many values more than this machine's."""
        self._deepest = max(self._deepest, self._depth + more)
        self._deepest_3_8 = max(self._deepest_3_8, self._depth + (more if more_3_8 is None else more_3_8))

    def _jump_here(self, index: int) -> None:
        do, argument, _, line, runs = self._instructions[index]
        self._instructions[index] = do, argument, len(self._instructions), line, runs

    def _problem(self, what: str) -> None:
        self._problems.append(Problem(self._places[-1], what))

    # Statements

    def _block(self, body: list[Statement], place: Location) -> None:
        for index, statement in enumerate(body):
            self._places.append((*place, index))
            if index and never_completes(body[index - 1]):
                verb = next(iter(type(body[index - 1]).model_fields.values())).alias
                what = f"`{verb}`" if verb in ("return", "raise") else "a statement that always returns or raises"
                self._problem(f"is never reached, because it is after {what}")
            self._statement(statement)

    @singledispatchmethod
    def _statement(self, statement: Statement) -> None:
        raise TypeError(statement)

    @_statement.register
    def _(self, form: language.Bind) -> None:
        for name, value in form.bind.items():
            self._expression(value)
            self._store(name)

    def _store(self, name: str) -> None:
        self._scope.bound.add(name)
        if self._in_cell(name):
            self._emit(Do.STORE_CELL, *self._cell(name))
        else:
            self._emit(Do.STORE, self._locals.setdefault(name, len(self._locals)))

    @_statement.register
    def _(self, form: language.Set) -> None:
        for place, value in form.set.items():
            self._expression(value)
            owner, _, attribute = place.rpartition(".")
            if not owner:
                self._problem(f"{place} is not an attribute; `bind` binds a variable")
                continue
            self._load(owner)
            self._emit(Do.SET_ATTRIBUTE, self._attribute(attribute))

    def _attribute(self, name: str) -> int:
        if name not in self._attributes:
            self._problem(f"no class has the attribute {name!r}; {nearest(name, self._attributes)}")
            return 0
        return self._attributes.index(name)

    @_statement.register
    def _(self, form: language.Drop) -> None:
        for name in form.drop:
            self._scope.bound.add(name)
            if self._in_cell(name):
                self._emit(Do.DELETE_CELL, *self._cell(name))
            else:
                self._emit(Do.DELETE, self._slot(name))

    def _slot(self, name: str) -> int:
        if name not in self._locals:
            known = [*self._locals, *self._scope.cells, *self._scope.free]
            self._problem(f"{name!r} is not bound here; {nearest(name, known)}")
        return self._locals.setdefault(name, len(self._locals))

    def _load(self, place: str) -> None:
        name, *attributes = place.split(".")
        self._scope.used.add(name)
        if self._in_cell(name):
            self._emit(Do.LOAD_CELL, *self._cell(name))
        elif name in self._functions and not self._scope.is_local(name):
            if name in self._generators:
                self._problem(f"{name!r} is a generator function, which can only be called by its name")
            self._constant(FunctionValue(self._functions.index(name)))
        else:
            self._emit(Do.LOAD, self._slot(name))
        for attribute in attributes:
            self._emit(Do.ATTRIBUTE, self._attribute(attribute))

    @_statement.register
    def _(self, form: language.Append) -> None:
        self._method(form.to, form.append, Do.APPEND)

    @_statement.register
    def _(self, form: language.Add) -> None:
        self._method(form.to, form.add, Do.ADD)

    @_statement.register
    def _(self, form: language.Discard) -> None:
        self._method(form.from_, form.discard, Do.DISCARD_ELEMENT)

    def _method(self, owner: str, argument: Expression, do: Do) -> None:
        self._load(owner)
        self._depth += 1  # the method
        self._expression(argument)
        self._depth -= 1
        self._emit(do)

    @_statement.register
    def _(self, form: language.Store) -> None:
        self._expression(form.store)
        self._load(form.into)
        self._expression(form.at)
        self._emit(Do.SET_ITEM)

    @_statement.register
    def _(self, form: language.Delete) -> None:
        self._load(form.delete)
        self._expression(form.at)
        self._emit(Do.DELETE_ITEM)

    @_statement.register
    def _(self, form: language.Pop) -> None:
        self._load(form.pop)
        self._emit(Do.POP_LAST)
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.Clear) -> None:
        self._load(form.clear)
        self._emit(Do.CLEAR)

    @_statement.register
    def _(self, form: language.Yield) -> None:
        if not self._is_generator:
            self._problem("`yield` is supported in the program's functions only")
        self._expression(form.yield_)
        self._emit(Do.YIELD, next(self._yield_distances, 0))

    @_statement.register
    def _(self, form: language.Next) -> None:
        self._expression(form)
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.Close) -> None:
        self._load(form.close)
        self._emit(Do.CLOSE)

    @_statement.register
    def _(self, form: language.Define) -> None:
        scope = self._scope.inner.get(id(form))
        if scope is None:
            place = (*self._places[-1], "do")
            scope = Scope(place, form.parameters, form.do, self._scope, tuple(form.nonlocal_), name=form.define)
            self._scope.inner[id(form)] = scope
            self._scopes.append(scope)
        for name in scope.free:
            self._emit(Do.LOAD_CLOSURE, *self._cell(name))
        if scope.free:
            self._emit(Do.TUPLE, len(scope.free))
        self._emit(Do.MAKE_CLOSURE if scope.free else Do.MAKE_FUNCTION, scope.number)
        self._store(form.define)

    @_statement.register
    def _(self, form: language.Return) -> None:
        if self._is_generator:
            self._problem("a generator function cannot return a value")
        if self._scope.method == INIT:
            self._problem(f"{INIT} returns no value")
        depth, blocks = self._depth, self._blocks
        if any(block.kind == FINALLY for block in blocks) and is_constant(form.return_):
            self._leave_blocks(has_result=False)
            self._expression(form.return_)
        else:
            self._expression(form.return_)
            self._leave_blocks(has_result=True)
        self._emit(Do.RETURN)
        self._depth, self._blocks = depth, blocks

    def _leave_blocks(self, *, has_result: bool) -> None:
        """Leaves all loops, handlers and `try` with `finally` around a `return`, from the innermost on."""
        region = self._region
        while self._blocks:
            *self._blocks, block = self._blocks
            if block.kind == LOOP:
                self._emit(Do.UNWIND if has_result else Do.DISCARD)
            elif block.kind == HANDLER:
                self._leave_handler(0, int(has_result))
                if block.variable:
                    self._emit(Do.ENTER_FINALLY)
                    self._emit(Do.UNBIND, block.variable - 1)
                    self._emit(Do.LEAVE_FINALLY)
            else:
                copy, self._region, self._layout_now = self._layout_now, block.region, self._layout_now | RETURN_COPY
                self._emit(Do.ENTER_FINALLY)
                self._block(block.body, block.place)
                self._emit(Do.LEAVE_FINALLY)
                self._layout_now = copy
        self._region = region

    @_statement.register
    def _(self, form: language.Call) -> None:
        self._expression(form)
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.Collect) -> None:
        self._emit(Do.COLLECT, form.collect)
        self._emit(Do.FOUND)
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.SwitchCollector) -> None:
        self._emit(Do.SWITCH_COLLECTOR, SWITCHES.index(form.collector))
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.Start) -> None:
        function = self._called(form.start, form.with_)
        if function is None:
            return
        self._depth += 2  # two functions
        self._expression(language.NewTuple(tuple=form.with_))
        self._depth -= 2
        self._reach(2)
        self._starts.append(self._emit(Do.START, function))
        self._emit(Do.DISCARD)
        self._has_threads = True

    def _add_threads(self) -> None:
        """Adds the code of threads: each calls its function."""
        for start in self._starts:
            do, function, _, line, runs = self._instructions[start]
            self._instructions[start] = do, function, len(self._instructions), line, runs
            self._instructions += [
                (int(each), function, 0, line, 0) for each in (Do.BEGIN_THREAD, Do.CALL, Do.LEAVE_THREAD, Do.END_THREAD)
            ]
        without = [0] * (len(self._instructions) - len(self._region_of))
        self._region_of, self._layout = self._region_of + without, self._layout + without

    @_statement.register
    def _(self, form: language.Acquire) -> None:
        self._wait(form.acquire, Do.ACQUIRE)
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.Release) -> None:
        self._wait(form.release, Do.RELEASE)
        self._emit(Do.DISCARD)

    def _wait(self, place: str, do: Do) -> None:
        self._load(place)
        self._emit(do)
        self._has_threads = True

    @_statement.register
    def _(self, form: language.Put) -> None:
        self._method(form.to, form.put, Do.PUT)
        self._has_threads = True

    @_statement.register
    def _(self, form: language.Sleep) -> None:
        self._emit(Do.SLEEP, form.sleep)
        self._emit(Do.DISCARD)
        self._has_threads = True

    @_statement.register
    def _(self, form: language.Work) -> None:
        self._emit(Do.WORK, form.work)
        self._has_threads = True

    @_statement.register
    def _(self, form: language.Repeat) -> None:
        self._emit(Do.RANGE, form.repeat)
        self._emit(Do.ITERATE)
        self._loop(form.as_, form.do)

    @_statement.register
    def _(self, form: language.Each) -> None:
        self._load(form.each)
        self._emit(Do.ITERATE)
        self._loop(form.as_, form.do)

    def _loop(self, name: str, body: list[Statement]) -> None:
        place, start = self._places[-1], self._emit(Do.NEXT)
        self._store(name)
        self._blocks.append(Block(LOOP))
        self._block(body, (*place, "do"))
        self._blocks.pop()
        self._emit(Do.JUMP, other=start)
        self._jump_here(start)
        self._depth -= 1

    @_statement.register
    def _(self, form: language.Choose) -> None:
        self._branches(self._emit(Do.CHOOSE, round(form.choose * CHOICE_STEPS)), form)

    @_statement.register
    def _(self, form: language.IfKey) -> None:
        self._expression(form.if_key)
        self._load(form.in_)
        self._branches(self._emit(Do.CONTAINS), form)

    def _branches(self, choice: int, form: language.Choose | language.IfKey) -> None:
        place = self._places[-1]
        self._block(form.do, (*place, "do"))
        if form.otherwise:
            end = self._emit(Do.JUMP)
            self._jump_here(choice)
            self._block(form.otherwise, (*place, "otherwise"))
            self._jump_here(end)
        else:
            self._jump_here(choice)

    # Exceptions

    @_statement.register
    def _(self, form: language.Raise) -> None:
        is_class = isinstance(form.raise_, str) and form.raise_ in language.EXCEPTIONS
        depth, which = self._depth, exception_index(form.raise_) if is_class else 0
        if form.raise_ is None:
            if form.with_ is not None or not self._handlers:
                self._problem("`raise` without an exception is for handlers, and without `with`")
            self._emit(Do.RAISE_AGAIN)
            return
        if is_class and form.with_ is None:
            self._emit(Do.RAISE_CLASS, which)
            return
        if is_class:
            self._depth += 1  # the class
            for each in form.with_ or ():
                self._expression(each)
            self._depth -= 1
            self._emit(Do.ARGUMENTS, len(form.with_ or ()))
            self._emit(Do.NEW_EXCEPTION, which, len(form.with_ or ()))
        else:
            if isinstance(form.raise_, str) and "." not in form.raise_ and form.raise_ not in self._locals:
                known = [*self._locals, *language.EXCEPTIONS]
                self._problem(f"unknown exception {form.raise_!r}; {nearest(form.raise_, known)}")
                return
            if form.with_ is not None:
                self._problem("`with` is for new exceptions, such as `raise: ValueError`")
            self._expression(form.raise_)
        self._depth = depth + 1
        self._emit(Do.RAISE)

    @_statement.register
    def _(self, form: language.Try) -> None:
        for what, key, is_wrong in (
            ("needs `except` and `handle`, or `finally`", "try", form.except_ is None and form.finally_ is None),
            ("`except` needs `handle`", "except", form.except_ is not None and form.handle is None),
            ("`handle` needs `except`", "handle", form.handle is not None and form.except_ is None),
            ("`as` needs `except`", "as", form.as_ is not None and form.except_ is None),
        ):
            if is_wrong:
                self._problems.append(Problem((*self._places[-1], key), what))
                return
        if form.finally_ is None:
            self._try_except(form)
        else:
            self._try_finally(form, form.finally_)

    def _try_except(self, form: language.Try) -> None:
        place, outer, depth = self._places[-1], self._region, self._depth
        body = self._new_region(CATCH, outer)
        self._tries += 1
        self._region = body
        self._block(form.try_, (*place, "try"))
        self._region = outer
        end = self._emit(Do.JUMP)
        classes = form.except_ or []
        self._regions[body][TARGET] = len(self._instructions)
        self._depth = depth + HANDLER_VALUES
        self._reach(max(7 if form.as_ else 0, 4 + (len(classes) if isinstance(classes, list) else 1)))
        handler = self._region = self._new_region(HANDLER, outer)
        match = self._emit(Do.MATCH, matching(classes))
        if form.as_:
            self._emit(Do.HANDLED)
            self._store(form.as_)
            self._region = self._new_region(NAME, handler)
            self._regions[self._region][VARIABLE] = self._locals[form.as_]
        variable = self._locals[form.as_] + 1 if form.as_ else 0
        self._blocks.append(Block(HANDLER, variable))
        self._handlers += 1
        self._block(form.handle or [], (*place, "handle"))
        self._handlers -= 1
        self._blocks.pop()
        self._region = outer
        self._leave_handler(variable, 0)
        after = self._emit(Do.JUMP)
        self._region = handler
        self._jump_here(match)
        self._emit(Do.RERAISE, int(variable > 0))
        self._region, self._depth = outer, depth
        self._jump_here(end)
        self._jump_here(after)

    def _try_finally(self, form: language.Try, last: list[Statement]) -> None:
        place, outer, depth = self._places[-1], self._region, self._depth
        body = self._new_region(FINALLY, outer)
        self._tries += 1
        self._region = body
        self._blocks.append(Block(FINALLY, 0, outer, last, (*place, "finally")))
        position, first = self._position, len(self._instructions)
        self._position = (*position, first, 1)
        if form.except_ is None:
            self._block(form.try_, (*place, "try"))
        else:
            self._try_except(form)
        self._blocks.pop()
        self._region = outer
        if any(map(_returns, last)):
            self._problems.append(Problem((*place, "finally"), "`return` is not supported in `finally`"))
        self._position = (*position, first, 0)
        self._block(last, (*place, "finally"))
        self._position = position
        end = self._emit(Do.JUMP)
        self._regions[body][TARGET] = len(self._instructions)
        layout, self._layout_now = self._layout_now, self._layout_now | EXCEPTION_COPY
        self._depth = depth + FINALLY_VALUES
        self._region = self._new_region(HANDLER, outer)
        self._regions[self._region][DEPTH] = depth + HANDLER_VALUES
        self._blocks.append(Block(HANDLER))
        self._block(last, (*place, "finally"))
        self._blocks.pop()
        self._emit(Do.RERAISE)
        self._region, self._depth, self._layout_now = outer, depth, layout
        self._jump_here(end)

    def _new_region(self, kind: int, outer: int) -> int:
        self._regions.append([kind, 0, self._depth, 0, outer])
        return len(self._regions) - 1

    def _leave_handler(self, variable: int, flags: int) -> None:
        self._emit(Do.LEAVE_HANDLER, variable, flags)
        self._depth -= HANDLER_VALUES

    # Expressions

    @singledispatchmethod
    def _expression(self, expression: Expression) -> None:
        raise TypeError(expression)

    @_expression.register
    def _(self, value: int) -> None:
        self._constant(value)

    @_expression.register
    def _(self, place: str) -> None:
        self._load(place)

    @_expression.register
    def _(self, form: language.Text) -> None:
        self._constant(form.text)

    @_expression.register
    def _(self, form: language.Letters) -> None:
        self._repeated(form.letters, Do.LETTERS)

    @_expression.register
    def _(self, form: language.Bytes) -> None:
        self._repeated(form.bytes, Do.BYTES)

    def _repeated(self, length: Expression, do: Do) -> None:
        self._depth += 1  # the text that is repeated
        self._expression(length)
        self._depth -= 1
        self._emit(do)

    @_expression.register
    def _(self, form: language.Half) -> None:
        if number_of(form.half) is not None:
            self._constant(0.5)
            return
        self._expression(form.half)
        self._emit(Do.HALF)

    @_expression.register
    def _(self, form: language.Sum) -> None:
        self._both(form, form.sum, Do.SUM)

    @_expression.register
    def _(self, form: language.Product) -> None:
        self._both(form, form.product, Do.PRODUCT)

    def _both(self, form: Expression, operands: list[Expression], do: Do) -> None:
        number = number_of(form)
        if number is None:
            for operand in operands:
                self._expression(operand)
            self._emit(do)
        elif number > language.LARGEST:
            self._problem(f"{number} exceeds the largest integer, {language.LARGEST}")
        else:
            self._constant(number)

    @_expression.register
    def _(self, form: language.NewTuple) -> None:
        if all(map(is_constant, form.tuple)):
            self._constant(value_of(form))
            return
        for each in form.tuple:
            self._expression(each)
        self._emit(Do.TUPLE, len(form.tuple))

    @_expression.register
    def _(self, form: language.NewList) -> None:
        if len(form.list) > 2 and all(map(is_constant, form.list)):
            self._reach(2, len(form.list))  # a list and a tuple; in 3.8 each constant
            self._constant(tuple(map(value_of, form.list)))
            self._emit(Do.LIST_OF_CONSTANTS)
            return
        for each in form.list:
            self._expression(each)
        self._emit(Do.LIST, len(form.list))

    @_expression.register
    def _(self, form: language.NewDict) -> None:
        keys = [key for key, _ in form.dict_]
        has_constant_keys = len(keys) > 1 and all(map(is_constant, keys))
        for key, value in form.dict_:
            if not has_constant_keys:
                self._expression(key)
            self._expression(value)
        if has_constant_keys:
            self._constant(tuple(map(value_of, keys)))
        self._emit(Do.DICT_OF_CONSTANTS if has_constant_keys else Do.DICT, len(keys))

    @_expression.register
    def _(self, form: language.NewSet) -> None:
        numbers = [number for number in map(number_of, form.set_) if number is not None]
        if len(numbers) > 2 and len(numbers) == len(form.set_):
            self._reach(2, len(numbers))  # a set and a frozenset; in 3.8 each constant
            once = frozenset_slots(numbers)
            twice = frozenset_slots([number for number in once if number is not None])
            self._constants += [once, twice]
            self._constant(tuple(numbers))
            self._emit(Do.SET_OF_CONSTANTS, len(self._constants) - 3, len(self._constants) - 2)
            return
        for each in form.set_:
            self._expression(each)
        self._emit(Do.SET, len(form.set_))

    @_expression.register
    def _(self, form: language.New) -> None:
        if form.new not in self._classes:
            self._problem(f"unknown class {form.new!r}; {nearest(form.new, self._classes)}")
            return
        self._scope.used.add(form.new)
        if self._scope.is_variable(form.new):
            self._problem(f"{form.new!r} is a variable here, so the class cannot be called here")
        init = self._program.classes[form.new].methods.get(INIT)
        wanted, which = len(init.parameters) if init else 0, self._classes.index(form.new)
        if wanted != len(form.with_):
            has = f"{INIT} of {form.new} has {wanted} parameters" if init else f"{form.new} has no {INIT}"
            self._problem(f"{has}, and is called with {len(form.with_)}")
        if init is None:
            self._emit(Do.NEW, which)
            return
        depth = self._depth
        self._depth += 1  # the class
        for each in form.with_:
            self._expression(each)
        self._depth = depth  # what follows is not on CPython's stack
        self._emit(Do.MAKE_ARGUMENTS, wanted, which)
        self._emit(Do.NEW, which, IN_CALL)
        self._emit(Do.CALL_INIT, self._init_of(form.new), wanted)
        self._emit(Do.END_INIT, wanted)

    def _init_of(self, name: str) -> int:
        """Returns the number of the function `__init__` of a class."""
        place = ("classes", name, "methods", INIT, "do")
        return next(scope.number for scope in self._scopes if scope.place == place)

    @_expression.register
    def _(self, form: language.Call) -> None:
        owner, _, name = form.call.rpartition(".")
        self._scope.used.add(form.call.partition(".")[0])
        if owner:
            self._load(owner)
            self._emit(Do.LOAD_METHOD, self._attribute(name))
            self._arguments(form, Do.CALL_METHOD)
        elif self._scope.is_variable(name) or self._surveys:
            self._load(name)
            self._arguments(form, Do.CALL_VALUE)
        else:
            self._call_function(form)

    def _arguments(self, form: language.Call, do: Do) -> None:
        for each in form.with_:
            self._expression(each)
        self._emit(do, len(form.with_))

    def _call_function(self, form: language.Call) -> None:
        function = self._called(form.call, form.with_)
        if function is None:
            return
        self._depth += 1  # CPython's stack has the function below its arguments
        for each in form.with_:
            self._expression(each)
        self._depth -= 1
        if form.call in self._generators:
            self._emit(Do.GENERATOR_FRAME, function)
            self._emit(Do.GENERATOR, function)
        else:
            self._emit(Do.CALL, function)

    def _called(self, name: str, arguments: list[Expression]) -> int | None:
        """Returns the number of a function of the program that is called with arguments; None if it is unknown."""
        if name not in self._functions:
            self._problem(f"unknown function {name!r}; {nearest(name, [*self._functions, *self._scope.defined])}")
            return None
        wanted = len(self._program.functions[name].parameters)
        if wanted != len(arguments):
            self._problem(f"{name} has {wanted} parameters, and is called with {len(arguments)}")
        return self._functions.index(name)

    @_expression.register
    def _(self, form: language.Item) -> None:
        self._load(form.item)
        self._expression(form.at)
        self._emit(Do.ITEM)

    @_expression.register
    def _(self, form: language.Length) -> None:
        self._load(form.length)
        self._emit(Do.LENGTH)

    @_expression.register
    def _(self, form: language.FirstKey) -> None:
        self._depth += 2  # two functions
        self._load(form.first_key)
        self._depth -= 2
        self._emit(Do.ITERATE, IN_CALL)
        self._emit(Do.FIRST_KEY)

    @_expression.register
    def _(self, form: language.Next) -> None:
        self._depth += 1  # the function
        self._load(form.next)
        if form.default is not None:
            self._expression(form.default)
        self._depth -= 1
        self._emit(Do.NEXT_OF, int(form.default is not None))

    @_expression.register
    def _(self, form: language.NewLock) -> None:
        self._emit(Do.LOCK)
        self._has_threads = True

    @_expression.register
    def _(self, form: language.NewQueue) -> None:
        self._emit(Do.QUEUE)
        self._emit(Do.FILL_QUEUE)
        self._has_threads = True

    @_expression.register
    def _(self, form: language.Take) -> None:
        self._wait(form.take, Do.TAKE)


def never_completes(form: Statement) -> bool:
    """Whether a statement always returns or raises."""

    def never(body: list[Statement] | None) -> bool:
        return body is not None and len(body) > 0 and never_completes(body[-1])

    if isinstance(form, (language.Choose, language.IfKey)):
        return never(form.do) and never(form.otherwise)
    if isinstance(form, language.Try):
        return never(form.finally_) or (never(form.try_) and (form.handle is None or never(form.handle)))
    return isinstance(form, (language.Return, language.Raise))


def _returns(form: Statement) -> bool:
    """Whether a statement is or contains a `return`."""
    inner = ("do", "otherwise", "try_", "handle", "finally_")
    return isinstance(form, language.Return) or any(
        _returns(each) for key in inner for each in getattr(form, key, None) or ()
    )


def has_yield(body: list[Statement]) -> bool:
    """Whether a function with these statements is a generator function."""
    keys = ("do", "otherwise", "try_", "handle", "finally_")
    inner = [
        each
        for form in body
        if not isinstance(form, language.Define)
        for key in keys
        for each in getattr(form, key, None) or ()
    ]
    return any(isinstance(form, language.Yield) for form in body) or (bool(inner) and has_yield(inner))
