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

The field `line` is the number of the statement: its place in the file is in `Code.places`.
"""

from dataclasses import dataclass
from enum import IntEnum, auto
from functools import singledispatchmethod
from typing import NamedTuple, TypeAlias, get_args

import numpy as np

from replay.jit.arrays import record
from replay.objects import language
from replay.objects.attributes import attributes, clashes, own_attributes
from replay.objects.frozensets import frozenset_slots
from replay.objects.language import INIT, SELF, Expression, Program, Statement
from replay.objects.scopes import Scope, find_cells
from replay.objects.twin import CHOICE_STEPS
from replay.support.names import nearest
from replay.support.yaml_documents import Location, Problem

INSTRUCTION = record("op", "argument", "other", "line", "runs")
"""`runs`: how often the machine has run the instruction."""
FUNCTION = record("start", "parameters", "locals", "stack", "stack_3_8", "block", "room", "warmth", "free")
"""`locals`: number of variables; the last `free` are the cells of the closure. `stack`: the largest number of values on
CPython's stack; it differs in 3.8. `block`, `room`: memory of the frame for the function's next call, and its number of
variables and values. `warmth`: calls and jumps back so far."""


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


SWITCHES = get_args(language.SwitchCollector.model_fields["collector"].annotation)
"""What SWITCH_COLLECTOR can do, by its argument: disable, enable, freeze, unfreeze."""
IN_CALL = 1
"""Argument of ITERATE for a call of `iter`, and `other` of NEW before a call of `__init__`."""
SLOT_BITS = 20
"""Of MAKE_CELL: `other` is a slot, and above these bits the parameter that is moved to it, counted from 1."""
_MORE = {Do.HALF: 1, Do.POP_LAST: 1, Do.CLEAR: 1, Do.LENGTH: 1, Do.NEW: 1, Do.RANGE: 2, Do.CHOOSE: 2,
         Do.COLLECT: 3, Do.SWITCH_COLLECTOR: 2, Do.MAKE_FUNCTION: 2, Do.MAKE_CLOSURE: 2}  # fmt: skip
"""Values that CPython has on the stack for a while: a function, a method, a constant."""
_PUSHED = {Do.CONSTANT, Do.LOAD, Do.NEW, Do.RANGE, Do.NEXT, Do.FOUND, Do.SWITCH_COLLECTOR, Do.LOAD_CELL,
           Do.LOAD_CLOSURE, Do.MAKE_FUNCTION, Do.LOAD_METHOD}  # fmt: skip
_POPPED = {Do.STORE: 1, Do.SUM: 1, Do.PRODUCT: 1, Do.UNWIND: 1, Do.RETURN: 1, Do.ITEM: 1, Do.DISCARD: 1, Do.CLEAR: 1,
           Do.SET_ATTRIBUTE: 2, Do.APPEND: 2, Do.SET_ITEM: 3, Do.DELETE_ITEM: 2, Do.CONTAINS: 2, Do.ADD: 2,
           Do.DISCARD_ELEMENT: 2, Do.STORE_CELL: 1}  # fmt: skip


def _effect(do: Do, argument: int, program: Program) -> int:
    """Returns by how much an instruction changes the number of values on the stack."""
    if do in (Do.TUPLE, Do.LIST, Do.SET):
        return 1 - argument
    if do == Do.DICT:
        return 1 - 2 * argument
    if do == Do.DICT_OF_CONSTANTS:
        return -argument
    if do in (Do.CALL_VALUE, Do.CALL_METHOD):
        return -argument - (do == Do.CALL_METHOD)
    if do == Do.CALL:
        return 1 - len([*program.functions.values()][argument].parameters)
    return 1 if do in _PUSHED else -_POPPED.get(do, 0)


@dataclass(frozen=True)
class FunctionValue:
    """A function of the program, as a value."""

    number: int


Constant: TypeAlias = "int | float | str | tuple[Constant, ...] | FunctionValue | None"
"""A constant; the value of a float does not matter."""


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
    constants: list["Constant"]
    places: list[Location]
    """Where each statement is in the file."""
    attributes: list[str]
    names: list[list[str]]
    """The local variables of each function, in the order of their slots."""


def compile_program(program: Program) -> tuple[Code | None, list[Problem]]:
    """Returns the code of a program, `main` last of its functions; or what is wrong with it."""
    return _Compiler(program).compile()


class _Compiler:
    """Compiles the functions of a program one after the other."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._functions = [*program.functions]
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
        self._depth = self._deepest = self._deepest_3_8 = self._loops = 0

    def compile(self) -> tuple[Code | None, list[Problem]]:
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
            self._constants,
            self._places,
            self._attributes,
            self._names,
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
        self._make_cells()
        self._block(scope.body, scope.place)
        self._constant(None)
        self._emit(Do.RETURN)
        self._names.append([*self._locals, *scope.cells, *scope.free])
        count = len(scope.fast) + len(scope.cells) + len(scope.free)
        stack = self._deepest, self._deepest_3_8
        return start, len(scope.parameters), count, *stack, 0, 0, 0, len(scope.free)

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

    def _emit(self, do: Do, argument: int = 0, other: int = 0) -> int:
        self._reach(_MORE.get(do, 0))
        self._depth += _effect(do, argument, self._program)
        self._reach(0)
        self._instructions.append((int(do), argument, other, len(self._places) - 1, 0))
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
            if index and isinstance(body[index - 1], language.Return):
                self._problem("is never reached, because it is after `return`")
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
        if self._scope.method == INIT:
            self._problem(f"{INIT} returns no value")
        self._expression(form.return_)
        depth = self._depth
        for _ in range(self._loops):
            self._emit(Do.UNWIND)
        self._emit(Do.RETURN)
        self._depth = depth - 1

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
        self._loops += 1
        self._block(body, (*place, "do"))
        self._loops -= 1
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
        if _number(form.half) is not None:
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
        number = _number(form)
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
        if all(map(_is_constant, form.tuple)):
            self._constant(_value(form))
            return
        for each in form.tuple:
            self._expression(each)
        self._emit(Do.TUPLE, len(form.tuple))

    @_expression.register
    def _(self, form: language.NewList) -> None:
        if len(form.list) > 2 and all(map(_is_constant, form.list)):
            self._reach(2, len(form.list))  # a list and a tuple; in 3.8 each constant
            self._constant(tuple(map(_value, form.list)))
            self._emit(Do.LIST_OF_CONSTANTS)
            return
        for each in form.list:
            self._expression(each)
        self._emit(Do.LIST, len(form.list))

    @_expression.register
    def _(self, form: language.NewDict) -> None:
        keys = [key for key, _ in form.dict_]
        has_constant_keys = len(keys) > 1 and all(map(_is_constant, keys))
        for key, value in form.dict_:
            if not has_constant_keys:
                self._expression(key)
            self._expression(value)
        if has_constant_keys:
            self._constant(tuple(map(_value, keys)))
        self._emit(Do.DICT_OF_CONSTANTS if has_constant_keys else Do.DICT, len(keys))

    @_expression.register
    def _(self, form: language.NewSet) -> None:
        numbers = [number for number in map(_number, form.set_) if number is not None]
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
        if form.call not in self._functions:
            known = [*self._functions, *self._scope.defined]
            self._problem(f"unknown function {form.call!r}; {nearest(form.call, known)}")
            return
        wanted = len(self._program.functions[form.call].parameters)
        if wanted != len(form.with_):
            self._problem(f"{form.call} has {wanted} parameters, and is called with {len(form.with_)}")
        self._depth += 1  # CPython's stack has the function below its arguments
        for each in form.with_:
            self._expression(each)
        self._depth -= 1
        self._emit(Do.CALL, self._functions.index(form.call))

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


def _number(expression: Expression) -> int | None:
    """Returns the integer that CPython's compiler computes; None if it computes none."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, (language.Sum, language.Product)):
        is_sum = isinstance(expression, language.Sum)
        first, second = map(_number, _operands(expression))
        if first is not None and second is not None:
            return first + second if is_sum else first * second
    return None


def _operands(form: language.Sum | language.Product) -> list[Expression]:
    return form.sum if isinstance(form, language.Sum) else form.product


def _is_constant(expression: Expression) -> bool:
    """Whether CPython's compiler makes a constant of an expression."""
    if isinstance(expression, language.NewTuple):
        return all(map(_is_constant, expression.tuple))
    if isinstance(expression, language.Half):
        return _number(expression.half) is not None
    return isinstance(expression, language.Text) or _number(expression) is not None


def _value(expression: Expression) -> Constant:
    """Returns the value of a constant."""
    if isinstance(expression, language.NewTuple):
        return tuple(map(_value, expression.tuple))
    if isinstance(expression, language.Text):
        return expression.text
    return 0.5 if isinstance(expression, language.Half) else _number(expression)
