"""Compiles the statements of an object program."""

from functools import singledispatchmethod

from replay.objects import language
from replay.objects.constants import is_constant
from replay.objects.flow import never_completes
from replay.objects.handlers import FINALLY, LOOP, Block
from replay.objects.instructions import IN_DELEGATION, SWITCHES, Do
from replay.objects.language import INIT, Expression, Statement
from replay.objects.raising import Raising
from replay.objects.scopes import Scope
from replay.objects.twin import CHOICE_STEPS
from replay.support.yaml_documents import Location


class Statements(Raising):
    """Emits statements: each leaves the stack as it was."""

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

    @_statement.register
    def _(self, form: language.Drop) -> None:
        for name in form.drop:
            self._scope.bound.add(name)
            if self._in_cell(name):
                self._emit(Do.DELETE_CELL, *self._cell(name))
            else:
                self._emit(Do.DELETE, self._slot(name))

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
        self._needs_generator("yield")
        self._expression(form.yield_)
        self._emit(Do.YIELD, next(self._yield_distances, 0))

    @_statement.register
    def _(self, form: language.YieldFrom) -> None:
        self._needs_generator("yield_from")
        self._load(form.yield_from)
        self._emit(Do.ITERATE, IN_DELEGATION)
        self._delegate()
        self._emit(Do.DISCARD)

    def _needs_generator(self, verb: str) -> None:
        if not self._is_generator or self._is_coroutine:
            self._problem(f"`{verb}` is supported in the program's functions only")

    @_statement.register
    def _(self, form: language.Await) -> None:
        self._expression(form)
        self._emit(Do.DISCARD)

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
        if self._is_generator:
            self._problem("`define` is not supported in a generator function")
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
        if self._is_generator and not self._is_coroutine:
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
        self._emit(Do.END_GENERATOR if self._is_generator else Do.RETURN)
        self._depth, self._blocks = depth, blocks

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
        self._scope.used.add(form.start)
        if self._scope.is_variable(form.start) and not self._surveys:
            self._problem(f"{form.start!r} is a variable or inner function; a thread calls a function of `functions`")
            return
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

    @_statement.register
    def _(self, form: language.Acquire) -> None:
        self._wait(form.acquire, Do.ACQUIRE)
        self._emit(Do.DISCARD)

    @_statement.register
    def _(self, form: language.Release) -> None:
        self._wait(form.release, Do.RELEASE)
        self._emit(Do.DISCARD)

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

    @_statement.register
    def _(self, form: language.IfNone) -> None:
        self._load(form.if_none)
        self._branches(self._emit(Do.IS_NONE), form)

    def _branches(self, choice: int, form: language.Choose | language.IfKey | language.IfNone) -> None:
        place = self._places[-1]
        self._block(form.do, (*place, "do"))
        if form.otherwise:
            end = self._emit(Do.JUMP)
            self._jump_here(choice)
            self._block(form.otherwise, (*place, "otherwise"))
            self._jump_here(end)
        else:
            self._jump_here(choice)

    @_statement.register
    def _(self, form: language.Raise) -> None:
        self._raise(form)

    @_statement.register
    def _(self, form: language.Try) -> None:
        self._try(form)
