"""Compiles the expressions of an object program."""

from functools import singledispatchmethod

from replay.objects import language
from replay.objects.constants import is_constant, number_of, value_of
from replay.objects.emitting import Emitter
from replay.objects.exception_classes import exception_number, with_init
from replay.objects.frozensets import frozenset_slots
from replay.objects.instructions import IN_CALL, IN_TUPLE, Do
from replay.objects.language import INIT, Expression
from replay.support.names import nearest


class Expressions(Emitter):
    """Emits expressions: each pushes one value."""

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
        owner, is_exception = with_init(self._program, form.new), bool(self._program.classes[form.new].base)
        if is_exception and owner is None:
            self._new_exception(form.new, form.with_)
            return
        init = self._program.classes[owner].methods[INIT] if owner else None
        wanted, which = len(init.parameters) if init else 0, self._classes.index(form.new)
        if wanted != len(form.with_):
            has = f"{INIT} of {form.new} has {wanted} parameters" if init else f"{form.new} has no {INIT}"
            self._problem(f"{has}, and is called with {len(form.with_)}")
        if owner is None:
            self._emit(Do.NEW, which)
            return
        depth = self._depth
        self._depth += 1  # the class
        for each in form.with_:
            self._expression(each)
        self._depth = depth  # what follows is not on CPython's stack
        self._emit(Do.MAKE_ARGUMENTS, wanted, which)
        if is_exception:
            self._emit(Do.NEW_EXCEPTION, exception_number(self._program, form.new), IN_TUPLE)
            self._depth += 1
        else:
            self._emit(Do.NEW, which, IN_CALL)
        self._emit(Do.CALL_INIT, self._init_of(owner), wanted)
        self._emit(Do.END_INIT, wanted)

    def _new_exception(self, name: str, arguments: list[Expression]) -> None:
        """Emits the call of a class of exceptions."""
        which, depth = exception_number(self._program, name), self._depth
        self._scope.used.add(name)
        self._depth += 1  # the class
        for each in arguments:
            self._expression(each)
        self._depth = depth
        self._emit(Do.ARGUMENTS, len(arguments), which)
        self._emit(Do.NEW_EXCEPTION, which, len(arguments))
        self._depth = depth + 1

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
    def _(self, form: language.Await) -> None:
        if not self._is_coroutine:
            self._problem("`await` is supported in functions with `coroutine: true` and without `yield` only")
        self._expression(form.await_)
        self._emit(Do.AWAIT)
        self._delegate()

    def _delegate(self) -> None:
        """Emits the loop that passes on what the generator or iterator on the stack yields."""
        send = self._emit(Do.SEND)
        self._emit(Do.YIELD_AGAIN)
        self._jump_here(send)

    @_expression.register
    def _(self, form: language.Steps) -> None:
        self._expression(form.steps)
        self._emit(Do.TUPLE, 1)
        self._emit(Do.STEPS)

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

    @_expression.register
    def _(self, form: language.Weakref) -> None:
        values = [form.weakref] if form.callback is None else [form.weakref, form.callback]
        self._depth += 1  # the class
        for each in values:
            self._expression(each)
        self._depth -= 1
        self._emit(Do.PACK_ARGUMENTS, len(values))
        self._emit(Do.WEAKREF, len(values))
        self._has_weak_references = True

    @_expression.register
    def _(self, form: language.Referent) -> None:
        self._load(form.referent)
        self._emit(Do.REFERENT)
