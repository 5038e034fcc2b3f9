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

The field `line` is the number of the statement: its place in the file is in `Code.places`.
"""

from collections.abc import Iterator
from enum import IntEnum, auto
from functools import singledispatchmethod
from typing import NamedTuple, get_args

import numpy as np

from replay.jit.arrays import record
from replay.objects import language
from replay.objects.code_units import yield_places
from replay.objects.constants import Constant, is_constant, number_of, value_of
from replay.objects.frozensets import frozenset_slots
from replay.objects.language import Expression, Program, Statement
from replay.objects.stack_sizes import UnknownFormError, stack_size
from replay.objects.twin import CHOICE_STEPS
from replay.support.names import nearest
from replay.support.yaml_documents import Location, Problem

INSTRUCTION = record("op", "argument", "other", "line", "runs")
"""`runs`: how often the machine has run the instruction."""
FUNCTION = record("start", "parameters", "locals", "stack", "stack_3_8", "block", "room", "warmth", "slots")
"""`stack`: the largest number of values on CPython's stack; it differs in 3.8. `block`, `room`: memory of the frame for
the function's next call, and its number of variables and values. `warmth`: calls and jumps back so far.
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
"""Argument of ITERATE for a call of `iter`."""
_MORE = {Do.HALF: 1, Do.POP_LAST: 1, Do.CLEAR: 1, Do.LENGTH: 1, Do.NEW: 1, Do.RANGE: 2, Do.CHOOSE: 2,
         Do.COLLECT: 3, Do.SWITCH_COLLECTOR: 2, Do.CLOSE: 1}  # fmt: skip
"""Values that CPython has on the stack for a while: a function, a method, a constant."""
_PUSHED = {Do.CONSTANT, Do.LOAD, Do.NEW, Do.RANGE, Do.NEXT, Do.FOUND, Do.SWITCH_COLLECTOR}
_POPPED = {Do.STORE: 1, Do.SUM: 1, Do.PRODUCT: 1, Do.UNWIND: 1, Do.RETURN: 1, Do.ITEM: 1, Do.DISCARD: 1, Do.CLEAR: 1,
           Do.SET_ATTRIBUTE: 2, Do.APPEND: 2, Do.SET_ITEM: 3, Do.DELETE_ITEM: 2, Do.CONTAINS: 2, Do.ADD: 2,
           Do.DISCARD_ELEMENT: 2, Do.YIELD: 1, Do.END_GENERATOR: 1, Do.CLOSE: 1}  # fmt: skip


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
    if do in (Do.CALL, Do.GENERATOR):
        return 1 - len([*program.functions.values()][argument].parameters)
    return 1 if do in _PUSHED else -_POPPED.get(do, 0)


class Code(NamedTuple):
    """The code of a program.

    `classes`: the number of slots of each class, -1 for instances with a dict. `slots`: the slot of each attribute in
    each class, -1 for none.
    """

    instructions: np.ndarray
    functions: np.ndarray
    classes: np.ndarray
    slots: np.ndarray
    constants: list["Constant"]
    places: list[Location]
    """Where each statement is in the file."""
    attributes: list[str]
    names: list[list[str]]
    """The local variables of each function, in the order of their slots."""
    stack_sizes: dict[tuple[int, int], list[int]]
    """The stack size of each function in CPython, by release from 3.11 on, if the program has generators."""


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
        self._attributes = _attributes(program)
        self._instructions: list[tuple[int, int, int, int, int]] = []
        self._constants: list[Constant] = []
        self._places: list[Location] = []
        self._locals: dict[str, int] = {}
        self._names: list[list[str]] = []
        self._problems: list[Problem] = []
        self._stack_sizes: dict[tuple[int, int], list[int]] = {}
        self._depth = self._deepest = self._deepest_3_8 = self._loops = 0

    def compile(self) -> tuple[Code | None, list[Problem]]:
        functions = []
        self._problems += [
            Problem(("classes", name), "is the name of a function too")
            for name in self._classes
            if name in self._functions
        ]
        bodies = [
            (("functions", name, "do"), each.parameters, each.do) for name, each in self._program.functions.items()
        ]
        for place, parameters, body in [*bodies, (("main",), [], self._program.main)]:
            start, self._depth, self._deepest, self._deepest_3_8 = len(self._instructions), 0, 0, 0
            self._called: set[str] = set()
            self._locals = {name: slot for slot, name in enumerate(parameters)}
            if len(self._locals) < len(parameters):
                self._problems.append(Problem((*place[:-1], "parameters"), "two have the same name"))
            self._is_generator = len(place) > 1 and place[1] in self._generators
            self._yield_distances = iter(self._distances(body) if self._is_generator else [])
            self._block(body, place)
            self._constant(None)
            self._emit(Do.END_GENERATOR if self._is_generator else Do.RETURN)
            self._names.append([*self._locals])
            self._problems += [
                Problem(place[:-1] or place, f"{name!r} is a variable here, so it cannot be called here")
                for name in self._locals
                if name in self._called
            ]
            if self._generators:
                self._add_stack_sizes(body, place)
            functions.append((start, len(parameters), len(self._locals), self._deepest, self._deepest_3_8, 0, 0, 0, 0))
        if self._problems:
            return None, self._problems
        kinds = [kind.slots and sorted(kind.slots) for kind in self._program.classes.values()]  # CPython sorts them
        slots = [[kind.index(name) if kind and name in kind else -1 for name in self._attributes] for kind in kinds]
        code = Code(
            np.array(self._instructions, INSTRUCTION),
            np.array(functions, FUNCTION),
            np.array([len(kind) if kind else -1 for kind in kinds], np.int64),
            np.array(slots, np.int64).reshape(len(slots), len(self._attributes)),
            self._constants,
            self._places,
            self._attributes,
            self._names,
            self._stack_sizes,
        )
        return code, []

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
            self._emit(Do.DELETE, self._slot(name))

    def _slot(self, name: str) -> int:
        if name not in self._locals:
            self._problem(f"{name!r} is not bound here; {nearest(name, [*self._locals])}")
        return self._locals.setdefault(name, len(self._locals))

    def _load(self, place: str) -> None:
        name, *attributes = place.split(".")
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
            self._problem("`yield` is not supported in `main`")
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
    def _(self, form: language.Return) -> None:
        if self._is_generator:
            self._problem("a generator function cannot return a value")
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
        self._called.add(form.new)
        self._emit(Do.NEW, self._classes.index(form.new))

    @_expression.register
    def _(self, form: language.Call) -> None:
        if form.call not in self._functions:
            self._problem(f"unknown function {form.call!r}; {nearest(form.call, self._functions)}")
            return
        self._called.add(form.call)
        wanted = len(self._program.functions[form.call].parameters)
        if wanted != len(form.with_):
            self._problem(f"{form.call} has {wanted} parameters, and is called with {len(form.with_)}")
        self._depth += 1  # CPython's stack has the function below its arguments
        for each in form.with_:
            self._expression(each)
        self._depth -= 1
        if form.call in self._generators:
            self._emit(Do.GENERATOR_FRAME, self._functions.index(form.call))
            self._emit(Do.GENERATOR, self._functions.index(form.call))
        else:
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

    @_expression.register
    def _(self, form: language.Next) -> None:
        self._depth += 1  # the function
        self._load(form.next)
        if form.default is not None:
            self._expression(form.default)
        self._depth -= 1
        self._emit(Do.NEXT_OF, int(form.default is not None))


def has_yield(body: list[Statement]) -> bool:
    """Whether a function with these statements is a generator function."""
    inner = [each for form in body for key in ("do", "otherwise") for each in getattr(form, key, [])]
    return any(isinstance(form, language.Yield) for form in body) or (bool(inner) and has_yield(inner))


def _attributes(program: Program) -> list[str]:
    """Returns the attributes that instances can have: all slots, and what is set if there are classes without slots."""
    names = [slot for kind in program.classes.values() for slot in kind.slots or ()]
    if any(kind.slots is None for kind in program.classes.values()):
        for body in [*(each.do for each in program.functions.values()), program.main]:
            names += _set_attributes(body)
    return list(dict.fromkeys(names))


def _set_attributes(body: list[Statement]) -> Iterator[str]:
    """Yields the attributes that statements set."""
    for form in body:
        if isinstance(form, language.Set):
            yield from (place.rpartition(".")[2] for place in form.set if "." in place)
        for inner in ("do", "otherwise"):
            yield from _set_attributes(getattr(form, inner, []))
