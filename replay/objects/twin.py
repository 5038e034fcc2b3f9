"""Writes an object program in plain Python: the program that its model is compared with.

Functions and classes are globals; everything else is local to `main`. Choices are read from `CHOICES`, an iterator over
bytes, which allocates nothing.
"""

from collections.abc import Iterator, Sequence
from functools import singledispatch

from replay.objects import language
from replay.objects.flow import has_yield
from replay.objects.language import Expression, Program, Statement

MULTIPLIER, INCREMENT = 1664525, 1013904223
"""Of the linear congruential generator modulo 2^32 whose highest bytes are the random choices."""
CHOICE_STEPS = 256
"""A choice compares one random byte with its probability times this number."""

_OPERATORS = (language.Sum, language.Product, language.Letters, language.Bytes, language.Half, language.Await)


def write_twin(program: Program) -> str:
    """Returns the definitions of a program in Python; `main()` runs it.

    It needs the globals `CHOICES`, `LETTER`, `BYTE`, `gc`, and `ref` of `_weakref`; with coroutines, also `coroutine`
    of `types`; with threads, also `start_new_thread` and `allocate_lock` of `_thread`, `SimpleQueue`, and `sleep`.
    """
    lines: list[str] = []
    for name, kind in program.classes.items():
        names = (*(kind.slots or ()), *(["__weakref__"] if kind.weakref else []))
        slots = f"    __slots__ = {names!r}" if kind.slots else "    pass"
        lines += [
            f"class {name}({kind.base}):" if kind.base else f"class {name}:",
            *([slots] if kind.slots or not kind.methods else []),
        ]
        for method, function in kind.methods.items():
            written = _function(method, [language.SELF, *function.parameters], function.do)
            lines += [f"    {line}" for line in written]
    definitions: list[str] = []
    for name, function in program.functions.items():
        definitions += _coroutine(function, _function(name, function.parameters, function.do))
    definitions += _function(language.MAIN, [], program.main)
    return "\n".join([*definitions, *lines]) + "\n"


def _function(name: str, parameters: Sequence[str], body: Sequence[Statement]) -> list[str]:
    return [f"def {name}({', '.join(parameters)}):", *_indented(body)]


def _coroutine(function: language.Function, written: list[str]) -> list[str]:
    """Returns the lines of a function, or of a coroutine if it is declared as one."""
    if not function.coroutine:
        return written
    return ["@coroutine", *written] if has_yield(function.do) else [f"async {written[0]}", *written[1:]]


def _indented(body: Sequence[Statement]) -> Iterator[str]:
    for statement in body:
        for line in _lines(statement):
            yield f"    {line}"


@singledispatch
def _lines(statement: Statement) -> list[str]:
    """Returns the lines of a statement."""
    raise TypeError(statement)


@_lines.register
def _(form: language.Bind) -> list[str]:
    return [f"{name} = {python(value)}" for name, value in form.bind.items()]


@_lines.register
def _(form: language.Set) -> list[str]:
    return [f"{place} = {python(value)}" for place, value in form.set.items()]


@_lines.register
def _(form: language.Drop) -> list[str]:
    return [f"del {name}" for name in form.drop]


@_lines.register
def _(form: language.Append) -> list[str]:
    return [f"{form.to}.append({python(form.append)})"]


@_lines.register
def _(form: language.Store) -> list[str]:
    return [f"{form.into}[{python(form.at)}] = {python(form.store)}"]


@_lines.register
def _(form: language.Delete) -> list[str]:
    return [f"del {form.delete}[{python(form.at)}]"]


@_lines.register
def _(form: language.Add) -> list[str]:
    return [f"{form.to}.add({python(form.add)})"]


@_lines.register
def _(form: language.Discard) -> list[str]:
    return [f"{form.from_}.discard({python(form.discard)})"]


@_lines.register
def _(form: language.Pop) -> list[str]:
    return [f"{form.pop}.pop()"]


@_lines.register
def _(form: language.Clear) -> list[str]:
    return [f"{form.clear}.clear()"]


@_lines.register
def _(form: language.Return) -> list[str]:
    return [f"return {python(form.return_)}"]


@_lines.register
def _(form: language.Call) -> list[str]:
    return [python(form)]


@_lines.register
def _(form: language.Yield) -> list[str]:
    return [f"yield {python(form.yield_)}"]


@_lines.register
def _(form: language.YieldFrom) -> list[str]:
    return [f"yield from {form.yield_from}"]


@_lines.register
def _(form: language.Await) -> list[str]:
    return [python(form)]


@_lines.register
def _(form: language.Next) -> list[str]:
    return [python(form)]


@_lines.register
def _(form: language.Close) -> list[str]:
    return [f"{form.close}.close()"]


@_lines.register
def _(form: language.Collect) -> list[str]:
    return [f"gc.collect({form.collect})"]


@_lines.register
def _(form: language.SwitchCollector) -> list[str]:
    return [f"gc.{form.collector}()"]


@_lines.register
def _(form: language.Define) -> list[str]:
    first, *lines = _function(form.define, form.parameters, form.do)
    outer = [f"    nonlocal {', '.join(form.nonlocal_)}"] if form.nonlocal_ else []
    return [first, *outer, *lines]


@_lines.register
def _(form: language.Start) -> list[str]:
    return [f"start_new_thread({form.start}, {python(language.NewTuple(tuple=form.with_))})"]


@_lines.register
def _(form: language.Acquire) -> list[str]:
    return [f"{form.acquire}.acquire()"]


@_lines.register
def _(form: language.Release) -> list[str]:
    return [f"{form.release}.release()"]


@_lines.register
def _(form: language.Put) -> list[str]:
    return [f"{form.to}.put({python(form.put)})"]


@_lines.register
def _(form: language.Sleep) -> list[str]:
    return [f"sleep({form.sleep / 1e9!r})"]


@_lines.register
def _(form: language.Work) -> list[str]:
    return ["pass"]


@_lines.register
def _(form: language.Repeat) -> list[str]:
    return [f"for {form.as_} in range({form.repeat}):", *_indented(form.do)]


@_lines.register
def _(form: language.Each) -> list[str]:
    return [f"for {form.as_} in {form.each}:", *_indented(form.do)]


@_lines.register
def _(form: language.Choose) -> list[str]:
    return _branches(f"if next(CHOICES) < {round(form.choose * CHOICE_STEPS)}:", form)


@_lines.register
def _(form: language.IfKey) -> list[str]:
    return _branches(f"if {_operand(form.if_key)} in {form.in_}:", form)


@_lines.register
def _(form: language.Raise) -> list[str]:
    if form.raise_ is None:
        return ["raise"]
    arguments = "" if form.with_ is None else f"({', '.join(map(python, form.with_))})"
    cause = "" if not form.has_cause else f" from {'None' if form.from_ is None else python(form.from_)}"
    return [f"raise {python(form.raise_)}{arguments}{cause}"]


@_lines.register
def _(form: language.Try) -> list[str]:
    lines = ["try:", *_indented(form.try_)]
    for each in form.clauses:
        names = each.except_ if isinstance(each.except_, str) else f"({''.join(f'{name}, ' for name in each.except_)})"
        lines += [f"except {names}{f' as {each.as_}' if each.as_ else ''}:", *_indented(each.handle)]
    return [*lines, "finally:", *_indented(form.finally_)] if form.finally_ else lines


@_lines.register
def _(form: language.IfNone) -> list[str]:
    return _branches(f"if {form.if_none} is None:", form)


def _branches(condition: str, form: language.Choose | language.IfKey | language.IfNone) -> list[str]:
    lines = [condition, *_indented(form.do)]
    return [*lines, "else:", *_indented(form.otherwise)] if form.otherwise else lines


@singledispatch
def python(expression: Expression) -> str:
    """Returns an expression in Python."""
    raise TypeError(expression)


@python.register(int)
@python.register(str)
def _(value: int | str) -> str:
    return str(value)


@python.register
def _(form: language.Text) -> str:
    return repr(form.text)


@python.register
def _(form: language.Letters) -> str:
    return f"LETTER * {_operand(form.letters)}"


@python.register
def _(form: language.Bytes) -> str:
    return f"BYTE * {_operand(form.bytes)}"


@python.register
def _(form: language.Half) -> str:
    return f"{_operand(form.half)} * 0.5"


@python.register
def _(form: language.Sum) -> str:
    return " + ".join(map(_operand, form.sum))


@python.register
def _(form: language.Product) -> str:
    return " * ".join(map(_operand, form.product))


@python.register
def _(form: language.NewTuple) -> str:
    return f"({''.join(f'{python(each)}, ' for each in form.tuple)})"


@python.register
def _(form: language.NewList) -> str:
    return f"[{', '.join(map(python, form.list))}]"


@python.register
def _(form: language.NewDict) -> str:
    return f"{{{', '.join(f'{python(key)}: {python(value)}' for key, value in form.dict_)}}}"


@python.register
def _(form: language.NewSet) -> str:
    return f"{{{', '.join(map(python, form.set_))}}}" if form.set_ else "set()"


@python.register
def _(form: language.New) -> str:
    return f"{form.new}({', '.join(map(python, form.with_))})"


@python.register
def _(form: language.Call) -> str:
    return f"{form.call}({', '.join(map(python, form.with_))})"


@python.register
def _(form: language.Item) -> str:
    return f"{form.item}[{python(form.at)}]"


@python.register
def _(form: language.Length) -> str:
    return f"len({form.length})"


@python.register
def _(form: language.FirstKey) -> str:
    return f"next(iter({form.first_key}))"


@python.register
def _(form: language.Next) -> str:
    return f"next({form.next})" if form.default is None else f"next({form.next}, {python(form.default)})"


@python.register
def _(form: language.Await) -> str:
    return f"await {_operand(form.await_)}"


@python.register
def _(form: language.Steps) -> str:
    return f"{_operand(form.steps)}.__await__()"


@python.register
def _(form: language.NewLock) -> str:
    return "allocate_lock()"


@python.register
def _(form: language.NewQueue) -> str:
    return "SimpleQueue()"


@python.register
def _(form: language.Take) -> str:
    return f"{form.take}.get()"


@python.register
def _(form: language.Weakref) -> str:
    return (
        f"ref({python(form.weakref)})"
        if form.callback is None
        else f"ref({python(form.weakref)}, {python(form.callback)})"
    )


@python.register
def _(form: language.Referent) -> str:
    return f"{form.referent}()"


def _operand(expression: Expression) -> str:
    """Returns an expression in parentheses if it has an operator."""
    text = python(expression)
    return f"({text})" if isinstance(expression, _OPERATORS) else text
