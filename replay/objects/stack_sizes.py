"""The stack sizes that CPython's compiler computes for functions, by release: `co_stacksize`.

They decide the size of frames and generators. A depth is the largest number of values that are on the stack at the same
time while a statement or an expression runs, beyond those that were there before.
"""

from collections.abc import Iterable
from functools import singledispatchmethod

from replay.objects import language
from replay.objects.constants import is_constant, number_of
from replay.objects.language import Expression, Statement


class UnknownFormError(Exception):
    """Raised for a statement or expression whose stack size or code is not known."""


_HANDLER, _CLEAN_UP = 1, 4
"""Values below a handler, from 3.11 on; the most that are on the stack when an exception leaves it."""


def stack_size(
    body: list[Statement], release: tuple[int, ...], is_generator: bool = False, cells: dict[int, int] | None = None
) -> int:
    """Returns the stack size of a function in a release such as (3, 12).

    `cells`: the number of cells in the closure of each function defined in it, by the identity of its statement.
    """
    least = 2 if is_generator and release >= (3, 12) else 1  # its handler of StopIteration has two values
    return max(least, _Depths(release, cells or {}).block(body))


class _Depths:
    """The depths of statements and expressions in a release."""

    def __init__(self, release: tuple[int, ...], cells: dict[int, int]) -> None:
        self._release, self._cells = release, cells
        self._callable = 2 if release >= (3, 11) else 1  # a function, and from 3.11 on an empty value beside it
        self._loop = 2 if release >= (3, 15) else 1  # an iterator, and in 3.15 an index
        self._delegation = self._loop + (2 if release >= (3, 12) else 1)  # what is sent, and an exception

    def block(self, body: Iterable[Statement]) -> int:
        return max(map(self._statement, body), default=0)

    def _row(self, values: Iterable[Expression], each: int = 1) -> int:
        """Returns the depth of values that are pushed one after the other, `each` apart."""
        return max((index * each + self._depth(value) for index, value in enumerate(values)), default=0)

    # Statements

    @singledispatchmethod
    def _statement(self, statement: Statement) -> int:
        raise UnknownFormError(statement)

    @_statement.register
    def _(self, form: language.Bind) -> int:
        return max(map(self._depth, form.bind.values()))

    @_statement.register
    def _(self, form: language.Set) -> int:
        return max(2, *map(self._depth, form.set.values()))

    @_statement.register(language.Drop)
    def _(self, _form: language.Drop) -> int:
        return 0

    @_statement.register
    def _(self, form: language.Append) -> int:
        return 2 + self._depth(form.append)

    @_statement.register
    def _(self, form: language.Add) -> int:
        return 2 + self._depth(form.add)

    @_statement.register
    def _(self, form: language.Discard) -> int:
        return 2 + self._depth(form.discard)

    @_statement.register
    def _(self, form: language.Store) -> int:
        return max(self._depth(form.store), 2 + self._depth(form.at))

    @_statement.register
    def _(self, form: language.Delete) -> int:
        return 1 + self._depth(form.at)

    @_statement.register(language.Pop)
    @_statement.register(language.Clear)
    @_statement.register(language.Close)
    @_statement.register(language.SwitchCollector)
    def _(self, _form: Statement) -> int:
        return 2

    @_statement.register(language.Collect)
    def _(self, _form: language.Collect) -> int:
        return 3

    @_statement.register(language.Call)
    @_statement.register(language.Next)
    def _(self, form: language.Call | language.Next) -> int:
        return self._depth(form)

    @_statement.register
    def _(self, form: language.Await) -> int:
        return self._depth(form)

    @_statement.register(language.YieldFrom)
    def _(self, _form: language.YieldFrom) -> int:
        return self._delegation

    @_statement.register
    def _(self, form: language.Return) -> int:
        return self._depth(form.return_)

    @_statement.register
    def _(self, form: language.Yield) -> int:
        return self._depth(form.yield_)

    @_statement.register
    def _(self, form: language.Define) -> int:
        cells = self._cells.get(id(form), 0)
        return max(cells, 2 if cells else 1)  # the cells; their tuple and the code

    @_statement.register
    def _(self, form: language.Start) -> int:
        return self._callable + 1 + self._depth(language.NewTuple(tuple=form.with_))

    @_statement.register(language.Acquire)
    @_statement.register(language.Release)
    def _(self, _form: Statement) -> int:
        return 2

    @_statement.register
    def _(self, form: language.Put) -> int:
        return 2 + self._depth(form.put)

    @_statement.register(language.Sleep)
    def _(self, _form: language.Sleep) -> int:
        return self._callable + 1

    @_statement.register(language.Work)
    def _(self, _form: language.Work) -> int:
        return 0

    @_statement.register
    def _(self, form: language.Repeat) -> int:
        return max(self._callable + 1, self._loop + max(1, self.block(form.do)))

    @_statement.register
    def _(self, form: language.Each) -> int:
        return self._loop + max(1, self.block(form.do))

    @_statement.register
    def _(self, form: language.Choose) -> int:
        return max(self._callable + 1, self.block(form.do), self.block(form.otherwise))

    @_statement.register
    def _(self, form: language.IfKey) -> int:
        return max(2, self._depth(form.if_key), self.block(form.do), self.block(form.otherwise))

    @_statement.register
    def _(self, form: language.IfNone) -> int:
        return max(1, self.block(form.do), self.block(form.otherwise))

    @_statement.register
    def _(self, form: language.Raise) -> int:
        if form.raise_ is None:
            return 0
        raised = self._depth(form.raise_) if form.with_ is None else self._callable + self._row(form.with_)
        return max(raised, 0 if not form.has_cause else 1 + self._depth(0 if form.from_ is None else form.from_))

    @_statement.register
    def _(self, form: language.Try) -> int:
        sizes = [self.block(form.try_), _CLEAN_UP]
        for each in form.clauses:
            classes = 1 if isinstance(each.except_, str) else len(each.except_)
            sizes += [_HANDLER + 1 + classes, _HANDLER + self.block(each.handle)]
        if form.finally_ is not None:
            sizes.append(_HANDLER + 1 + self.block(form.finally_))
        return max(sizes)

    # Expressions

    @singledispatchmethod
    def _depth(self, expression: Expression) -> int:
        raise UnknownFormError(expression)

    @_depth.register(int)
    @_depth.register(str)
    @_depth.register(language.Text)
    def _(self, _value: Expression) -> int:
        return 1

    @_depth.register
    def _(self, form: language.Letters) -> int:
        return 1 + self._depth(form.letters)

    @_depth.register
    def _(self, form: language.Bytes) -> int:
        return 1 + self._depth(form.bytes)

    @_depth.register
    def _(self, form: language.Half) -> int:
        return 1 if is_constant(form) else max(2, self._depth(form.half))

    @_depth.register
    def _(self, form: language.Sum) -> int:
        return 1 if number_of(form) is not None else self._row(form.sum)

    @_depth.register
    def _(self, form: language.Product) -> int:
        return 1 if number_of(form) is not None else self._row(form.product)

    @_depth.register
    def _(self, form: language.NewTuple) -> int:
        return 1 if is_constant(form) else self._row(form.tuple)

    @_depth.register
    def _(self, form: language.NewList) -> int:
        return self._display(form.list, all(map(is_constant, form.list))) if form.list else 1

    @_depth.register
    def _(self, form: language.NewSet) -> int:
        return self._display(form.set_, all(map(is_constant, form.set_))) if form.set_ else self._callable

    def _display(self, values: list[Expression], are_constants: bool) -> int:
        """Returns the depth of a list or set; that of three or more constants is made from one constant."""
        if len(values) > 2 and are_constants:
            return len(values) if self._release <= (3, 8) else 2
        return self._row(values)

    @_depth.register
    def _(self, form: language.NewDict) -> int:
        keys, values = [key for key, _ in form.dict_], [value for _, value in form.dict_]
        if not keys:
            return 1
        if len(keys) > 1 and all(map(is_constant, keys)) and self._release <= (3, 13):
            return max(self._row(values), len(values) + 1)
        return max(self._row(keys, 2), 1 + self._row(values, 2))

    @_depth.register
    def _(self, form: language.New) -> int:
        return self._callable + self._row(form.with_)

    @_depth.register
    def _(self, form: language.Call) -> int:
        return self._callable + self._row(form.with_)

    @_depth.register
    def _(self, form: language.Await) -> int:
        return max(self._delegation, self._depth(form.await_))

    @_depth.register
    def _(self, form: language.Steps) -> int:
        return max(2, self._depth(form.steps))

    @_depth.register
    def _(self, form: language.Weakref) -> int:
        return self._callable + self._row([form.weakref] if form.callback is None else [form.weakref, form.callback])

    @_depth.register(language.Referent)
    def _(self, _form: language.Referent) -> int:
        return self._callable

    @_depth.register
    def _(self, form: language.Item) -> int:
        return 1 + self._depth(form.at)

    @_depth.register(language.Length)
    def _(self, _form: language.Length) -> int:
        return self._callable + 1

    @_depth.register(language.FirstKey)
    def _(self, _form: language.FirstKey) -> int:
        return 2 * self._callable + 1

    @_depth.register(language.NewLock)
    @_depth.register(language.NewQueue)
    def _(self, _form: Expression) -> int:
        return self._callable

    @_depth.register(language.Take)
    def _(self, _form: language.Take) -> int:
        return 2

    @_depth.register
    def _(self, form: language.Next) -> int:
        return self._callable + 1 + (self._depth(form.default) if form.default is not None else 0)
