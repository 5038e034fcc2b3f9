"""Sizes of CPython's stack for functions with exceptions, from 3.11 on: their frame objects have room for it.

Every function here returns how many values an expression or statement has on the stack at most. `code` counts those of
releases up to 3.10, where every call has such a frame.
"""

from collections.abc import Sequence
from functools import singledispatch

from replay.objects import language
from replay.objects.code import is_constant
from replay.objects.language import EXCEPTIONS, Expression, Statement

_FUNCTION = 2
"""A function that is called: itself and an empty value, or a method and its object."""
_HANDLER, _CLEAN_UP = 1, 4
"""Values below a handler; the most that are on the stack when an exception leaves it."""


def stack_size(body: Sequence[Statement], release: tuple[int, ...]) -> int:
    """Returns the size of the stack of a function with these statements."""
    return max(1, _block(body, release[:2]))


def _block(body: Sequence[Statement], release: tuple[int, ...]) -> int:
    return max((_statement(statement, release) for statement in body), default=0)


def _row(values: Sequence[Expression], release: tuple[int, ...], below: int = 0) -> int:
    """Returns the size for values one above the other, on so many others."""
    return max((below + index + _size(value, release) for index, value in enumerate(values)), default=below)


@singledispatch
def _statement(form: Statement, release: tuple[int, ...]) -> int:
    raise TypeError(form)


@_statement.register
def _(form: language.Bind, release: tuple[int, ...]) -> int:
    return max(_size(value, release) for value in form.bind.values())


@_statement.register
def _(form: language.Set, release: tuple[int, ...]) -> int:
    return max(2, *(_size(value, release) for value in form.set.values()))


@_statement.register
def _(form: language.Drop, release: tuple[int, ...]) -> int:
    return 0


@_statement.register
def _(form: language.Append, release: tuple[int, ...]) -> int:
    return _row([form.append], release, _FUNCTION)


@_statement.register
def _(form: language.Add, release: tuple[int, ...]) -> int:
    return _row([form.add], release, _FUNCTION)


@_statement.register
def _(form: language.Discard, release: tuple[int, ...]) -> int:
    return _row([form.discard], release, _FUNCTION)


@_statement.register
def _(form: language.Store, release: tuple[int, ...]) -> int:
    return _row([form.store, form.into, form.at], release)


@_statement.register
def _(form: language.Delete, release: tuple[int, ...]) -> int:
    return _row([form.delete, form.at], release)


@_statement.register(language.Pop)
@_statement.register(language.Clear)
@_statement.register(language.SwitchCollector)
def _(form: language.Pop | language.Clear | language.SwitchCollector, release: tuple[int, ...]) -> int:
    return _FUNCTION


@_statement.register
def _(form: language.Collect, release: tuple[int, ...]) -> int:
    return _FUNCTION + 1


@_statement.register
def _(form: language.Return, release: tuple[int, ...]) -> int:
    return _size(form.return_, release)


@_statement.register
def _(form: language.Call, release: tuple[int, ...]) -> int:
    return _size(form, release)


@_statement.register
def _(form: language.Repeat, release: tuple[int, ...]) -> int:
    return max(_FUNCTION + 1, _loop(form.do, release))


@_statement.register
def _(form: language.Each, release: tuple[int, ...]) -> int:
    return _loop(form.do, release)


def _loop(body: Sequence[Statement], release: tuple[int, ...]) -> int:
    iterator = 2 if release >= (3, 15) else 1
    return iterator + max(1, _block(body, release))


@_statement.register
def _(form: language.Choose, release: tuple[int, ...]) -> int:
    return max(_FUNCTION + 1, _block(form.do, release), _block(form.otherwise, release))


@_statement.register
def _(form: language.IfKey, release: tuple[int, ...]) -> int:
    return max(_row([form.if_key, form.in_], release), _block(form.do, release), _block(form.otherwise, release))


@_statement.register
def _(form: language.Raise, release: tuple[int, ...]) -> int:
    if form.raise_ is None:
        return 0
    if isinstance(form.raise_, str) and form.raise_ in EXCEPTIONS:
        return 1 if form.with_ is None else _row(form.with_, release, _FUNCTION)
    return _size(form.raise_, release)


@_statement.register
def _(form: language.Try, release: tuple[int, ...]) -> int:
    sizes = [_block(form.try_, release), _CLEAN_UP]
    if form.except_ is not None:
        classes = 1 if isinstance(form.except_, str) else len(form.except_)
        sizes += [_HANDLER + 1 + classes, _HANDLER + _block(form.handle or [], release)]
    if form.finally_ is not None:
        result = 1 if _returns_value(form) else 0
        body = _block(form.finally_, release)
        sizes += [result + body, _HANDLER + 1 + body]
    return max(sizes)


def _returns_value(form: Statement) -> bool:
    return True


@singledispatch
def _size(form: Expression, release: tuple[int, ...]) -> int:
    raise TypeError(form)


@_size.register(int)
@_size.register(str)
@_size.register(language.Text)
def _(form: int | str | language.Text, release: tuple[int, ...]) -> int:
    return 1


@_size.register
def _(form: language.Letters, release: tuple[int, ...]) -> int:
    return _row([form.letters], release, 1)


@_size.register
def _(form: language.Bytes, release: tuple[int, ...]) -> int:
    return _row([form.bytes], release, 1)


@_size.register
def _(form: language.Half, release: tuple[int, ...]) -> int:
    return 1 if is_constant(form) else max(2, _size(form.half, release))


@_size.register
def _(form: language.Sum, release: tuple[int, ...]) -> int:
    return 1 if is_constant(form) else _row(form.sum, release)


@_size.register
def _(form: language.Product, release: tuple[int, ...]) -> int:
    return 1 if is_constant(form) else _row(form.product, release)


@_size.register
def _(form: language.NewTuple, release: tuple[int, ...]) -> int:
    return 1 if is_constant(form) else _row(form.tuple, release)


@_size.register
def _(form: language.NewList, release: tuple[int, ...]) -> int:
    if len(form.list) > 2 and all(map(is_constant, form.list)):
        return 2
    return max(1, _row(form.list, release))


@_size.register
def _(form: language.NewDict, release: tuple[int, ...]) -> int:
    keys, values = [key for key, _ in form.dict_], [value for _, value in form.dict_]
    if len(keys) > 1 and all(map(is_constant, keys)) and release <= (3, 13):
        return max(len(values) + 1, _row(values, release))
    return max(1, _row([each for pair in form.dict_ for each in pair], release))


@_size.register
def _(form: language.NewSet, release: tuple[int, ...]) -> int:
    if not form.set_:
        return _FUNCTION
    return 2 if len(form.set_) > 2 and all(map(is_constant, form.set_)) else _row(form.set_, release)


@_size.register
def _(form: language.New, release: tuple[int, ...]) -> int:
    return _FUNCTION


@_size.register
def _(form: language.Call, release: tuple[int, ...]) -> int:
    return _row(form.with_, release, _FUNCTION)


@_size.register
def _(form: language.Item, release: tuple[int, ...]) -> int:
    return _row([form.item, form.at], release)


@_size.register
def _(form: language.Length, release: tuple[int, ...]) -> int:
    return _FUNCTION + 1


@_size.register
def _(form: language.FirstKey, release: tuple[int, ...]) -> int:
    return 2 * _FUNCTION + 1
