"""Where the `yield`s of a generator function are in the bytecode of 3.12.

That release creates an integer of this place while it closes a generator, as a new object if it exceeds 256. Places are
in code units of two bytes, inline caches included. The compiler arranges branches in several ways, so a place is known
as a range.
"""

from collections.abc import Collection
from functools import singledispatchmethod
from typing import NamedTuple

from replay.objects import language
from replay.objects.constants import is_constant, number_of
from replay.objects.language import Expression, Statement
from replay.objects.stack_sizes import UnknownFormError

GLOBAL, METHOD, CALL = 5, 10, 4
_PROLOGUE = 3
_DELEGATION = 8
"""Units of `await` and `yield from` after what they are about: a constant, the loop, its end."""
_FAR = 255
"""A longer jump has an instruction more."""


class Range(NamedTuple):
    """The least and the largest number of code units."""

    least: int
    largest: int

    def plus(self, units: int, more: int = 0) -> "Range":
        return Range(self.least + units, self.largest + units + more)


def yield_places(body: list[Statement], functions: Collection[str] | None = None) -> list[Range]:
    """Returns the places of the `yield`s of a generator function, in the order of the file.

    `functions`: the names that mean functions of the program; None: those that are called.
    """
    places = _Places(functions)
    places.block(body)
    return places.found


class _Places:
    """Walks through the statements of a function."""

    def __init__(self, functions: Collection[str] | None) -> None:
        self.found: list[Range] = []
        self._functions = functions
        self._at = Range(_PROLOGUE, _PROLOGUE)

    def block(self, body: list[Statement]) -> None:
        for statement in body:
            self._statement(statement)

    def _units(self, form: "Expression | Statement") -> int:
        return _units(form, self._functions)

    def _skip(self, units: int) -> None:
        self._at = self._at.plus(units)

    @singledispatchmethod
    def _statement(self, statement: Statement) -> None:
        self._skip(self._units(statement) + isinstance(statement, (language.Call, language.Next, language.Await)))

    @_statement.register
    def _(self, form: language.Yield) -> None:
        self._skip(self._units(form.yield_))
        self.found.append(self._at)
        self._skip(3)

    @_statement.register
    def _(self, form: language.YieldFrom) -> None:
        self._skip(_units(form.yield_from) + _DELEGATION + 1)

    @_statement.register
    def _(self, form: language.Repeat) -> None:
        self._skip(GLOBAL + 1 + CALL + 1)
        self._loop(form.do)

    @_statement.register
    def _(self, form: language.Each) -> None:
        self._skip(self._units(form.each) + 1)
        self._loop(form.do)

    def _loop(self, body: list[Statement]) -> None:
        known, start = len(self.found), self._at
        self._skip(2 + 1)
        self.block(body)
        self._skip(1 + 1)
        if self._at.largest - start.least > _FAR - 2:  # both jumps may be long
            self.found[known:] = [place.plus(0, 1) for place in self.found[known:]]
            self._at = self._at.plus(0, 2)

    @_statement.register
    def _(self, form: language.Choose) -> None:
        self._skip(2 * GLOBAL + CALL + 1 + 2 + 1)
        self._branches(form)

    @_statement.register
    def _(self, form: language.IfKey) -> None:
        self._skip(self._units(form.if_key) + self._units(form.in_) + 1 + 1)
        self._branches(form)

    @_statement.register
    def _(self, form: language.IfNone) -> None:
        self._skip(self._units(form.if_none) + 1)
        self._branches(form)

    def _branches(self, form: language.Choose | language.IfKey | language.IfNone) -> None:
        for body in (form.do, form.otherwise):
            known, start = len(self.found), self._at
            self._at = self._at.plus(0, 2)
            self.block(body)
            if self._at.largest - start.least > _FAR - 2:
                self.found[known:] = [place.plus(0, 1) for place in self.found[known:]]
                self._at = self._at.plus(0, 2)


def _units(form: "Expression | Statement", functions: Collection[str] | None = None) -> int:
    """Returns the length of an expression, or of a statement without statements in it."""
    if is_constant(form):
        return 1
    if isinstance(form, str):
        return (GLOBAL if functions and form in functions else 1) + METHOD * form.count(".")
    fixed, parts = _parts(form)
    if isinstance(form, language.Call):
        fixed += _units_to_load(form.call, functions)
    return fixed + sum(_units(part, functions) for part in parts)


def _units_to_load(called: str, functions: Collection[str] | None) -> int:
    """Returns the length of the instructions that push what is called."""
    if "." in called:
        return _units(called)
    return GLOBAL if functions is None or called in functions else 2


def _parts(form: "Expression | Statement") -> tuple[int, list[Expression]]:
    """Returns the length of a form without its parts, and the parts."""
    match form:
        case language.Letters():
            return GLOBAL + 2, [form.letters]
        case language.Bytes():
            return GLOBAL + 2, [form.bytes]
        case language.Half():
            return 3, [form.half]
        case language.Sum():
            return 2, form.sum
        case language.Product():
            return 2, form.product
        case language.NewTuple():
            return 1, form.tuple
        case language.NewList():
            return (3, []) if len(form.list) > 2 and all(map(is_constant, form.list)) else (1, form.list)
        case language.NewSet():
            if not form.set_:
                return GLOBAL + CALL, []
            return (3, []) if len(form.set_) > 2 and None not in map(number_of, form.set_) else (1, form.set_)
        case language.NewDict():
            keys, values = [key for key, _ in form.dict_], [value for _, value in form.dict_]
            return (2, values) if len(keys) > 1 and all(map(is_constant, keys)) else (1, keys + values)
        case language.New():
            return GLOBAL + CALL, form.with_
        case language.Item():
            return 2, [form.item, form.at]
        case language.Length():
            return GLOBAL + CALL, [form.length]
        case language.FirstKey():
            return 2 * (GLOBAL + CALL), [form.first_key]
        case language.Await():
            return _DELEGATION, [form.await_]
        case language.Weakref():
            return GLOBAL + CALL, [form.weakref, *([] if form.callback is None else [form.callback])]
        case language.Referent():
            return 1 + CALL, [form.referent]
        case language.Steps():
            return METHOD + CALL, [form.steps]
    return _parts_of_statement(form)


def _parts_of_statement(form: "Expression | Statement") -> tuple[int, list[Expression]]:
    """Returns the length of a statement without its parts, and the parts; calls are statements or expressions."""
    match form:
        case language.Bind():
            return len(form.bind), [*form.bind.values()]
        case language.Set():
            owners = [place.rpartition(".")[0] for place in form.set]
            return 5 * len(owners), [*owners, *form.set.values()]
        case language.Drop():
            return len(form.drop), []
        case language.Append():
            return METHOD + CALL + 1, [form.to, form.append]
        case language.Add():
            return METHOD + CALL + 1, [form.to, form.add]
        case language.Discard():
            return METHOD + CALL + 1, [form.from_, form.discard]
        case language.Store():
            return 2, [form.store, form.into, form.at]
        case language.Delete():
            return 1, [form.delete, form.at]
        case language.Pop():
            return METHOD + CALL + 1, [form.pop]
        case language.Clear():
            return METHOD + CALL + 1, [form.clear]
        case language.Close():
            return METHOD + CALL + 1, [form.close]
        case language.Collect():
            return GLOBAL + METHOD + 1 + CALL + 1, []
        case language.SwitchCollector():
            return GLOBAL + METHOD + CALL + 1, []
        case language.Return():
            return 1, [form.return_]
        case language.Call():
            return CALL, form.with_
        case language.Next():
            return GLOBAL + CALL, [form.next, *([] if form.default is None else [form.default])]
    raise UnknownFormError(form)
