"""Compiles `raise` and `try` of an object program, and what a `return` leaves."""

from replay.objects import language
from replay.objects.exception_classes import STOP_ITERATION, exception_names, exception_number, matching, with_init
from replay.objects.expressions import Expressions
from replay.objects.flow import returns
from replay.objects.handlers import (
    CATCH,
    DEPTH,
    EXCEPTION_COPY,
    FINALLY,
    FINALLY_VALUES,
    HANDLER,
    HANDLER_VALUES,
    IN_CELL,
    LOOP,
    NAME,
    NAMED_BEFORE,
    RETURN_COPY,
    TARGET,
    VARIABLE,
    Block,
)
from replay.objects.instructions import SLOT_BITS, Do
from replay.objects.language import Statement
from replay.support.names import nearest
from replay.support.yaml_documents import Location, Problem


class Raising(Expressions):
    """Emits statements of exceptions, and the regions in which exceptions have handlers."""

    def _block(self, body: list[Statement], place: Location) -> None:
        raise NotImplementedError

    def _raise(self, form: language.Raise) -> None:
        classes, depth = exception_names(self._program), self._depth
        is_class = isinstance(form.raise_, str) and form.raise_ in classes and not self._is_variable(form.raise_)
        if form.raise_ is None:
            if form.with_ is not None or form.has_cause or not self._handlers:
                self._problem("`raise` without an exception is for handlers, and without `with` and `from`")
            self._emit(Do.RAISE_AGAIN)
            return
        if isinstance(form.raise_, str):
            self._scope.used.add(form.raise_.partition(".")[0])
        if is_class and form.raise_ == STOP_ITERATION:
            self._problem(f"only `next` raises {STOP_ITERATION}")
        if is_class and form.raise_ in self._classes and form.with_ is not None:
            self._expression(language.New.model_construct(new=str(form.raise_), with_=form.with_))
        elif is_class and form.with_ is not None:
            self._new_exception(str(form.raise_), form.with_)
        elif is_class:
            if form.raise_ in self._classes and with_init(self._program, str(form.raise_)):
                self._problem(f"{form.raise_} has {language.INIT}, so `raise` needs `with`")
            self._depth += 1  # the class
        else:
            is_name = isinstance(form.raise_, str) and "." not in form.raise_
            if is_name and not self._surveys and not self._is_variable(str(form.raise_)):
                known = [*self._locals, *classes]
                self._problem(f"unknown exception {form.raise_!r}; {nearest(form.raise_, known)}")
                return
            if form.with_ is not None:
                self._problem("`with` is for new exceptions, such as `raise: ValueError`")
            self._expression(form.raise_)
        if form.has_cause and form.from_ is None:
            self._constant(None)
        elif form.from_ is not None:
            self._expression(form.from_)
        is_new = is_class and form.with_ is None
        self._depth = depth + (not is_new)
        which = exception_number(self._program, str(form.raise_)) if is_new else 0
        self._emit(Do.RAISE_CLASS if is_new else Do.RAISE, which, int(form.has_cause))

    def _variable(self, name: str) -> int:
        """Returns how UNBIND and others name a variable."""
        if not self._in_cell(name):
            return self._locals[name] + 1
        now, apart = self._cell(name)
        return IN_CELL | apart << SLOT_BITS | now

    def _is_variable(self, name: str) -> bool:
        """Whether a name is a variable that is bound before this statement."""
        return name in self._locals or self._in_cell(name)

    def _try(self, form: language.Try) -> None:
        catches = form.except_ is not None
        for what, key, is_wrong in (
            ("`except` needs `handle`", "except", catches and form.handle is None),
            ("`handle` needs `except`", "handle", form.handle is not None and not catches),
            ("`as` needs `except`", "as", form.as_ is not None and not catches),
            ("`except` is one of `handlers`, or there are none", "handlers", catches and form.handlers is not None),
            ("needs `except` and `handle`, or `finally`", "try", not form.clauses and form.finally_ is None),
        ):
            if is_wrong:
                self._problems.append(Problem((*self._places[-1], key), what))
                return
        if form.finally_ is None:
            self._try_except(form)
        else:
            self._try_finally(form, form.finally_)

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
                    self._emit(Do.UNBIND, block.variable)
                    self._emit(Do.LEAVE_FINALLY)
            else:
                copy, self._region, self._layout_now = self._layout_now, block.region, self._layout_now | RETURN_COPY
                self._emit(Do.ENTER_FINALLY)
                self._block(block.body, block.place)
                self._emit(Do.LEAVE_FINALLY)
                self._layout_now = copy
        self._region = region

    def _try_except(self, form: language.Try) -> None:
        place, outer, depth = self._places[-1], self._region, self._depth
        body = self._new_region(CATCH, outer)
        self._tries += 1
        self._region = body
        self._block(form.try_, (*place, "try"))
        self._region = outer
        end = self._emit(Do.JUMP)
        self._regions[body][TARGET] = len(self._instructions)
        self._depth = depth + HANDLER_VALUES
        handler = self._region = self._new_region(HANDLER, outer)
        ends, variable = [end], 0
        for index, clause in enumerate(form.clauses):
            where = place if form.handlers is None else (*place, "handlers", index)
            match = self._match(clause, where, NAMED_BEFORE if variable else 0)
            variable = self._handle(clause, where, outer)
            ends.append(self._emit(Do.JUMP))
            self._region, self._depth = handler, depth + HANDLER_VALUES
            self._jump_here(match)
        self._emit(Do.RERAISE, int(variable > 0))
        self._region, self._depth = outer, depth
        for each in ends:
            self._jump_here(each)

    def _match(self, clause: language.Handler, place: Location, flags: int) -> int:
        """Emits the instruction that jumps unless an `except` is for the exception, and returns its index."""
        classes = [clause.except_] if isinstance(clause.except_, str) else clause.except_
        self._reach(max(7 if clause.as_ else 0, 4 + len(classes)))
        known = exception_names(self._program)
        self._scope.used |= {*classes}
        for name in classes:
            if name not in known or self._is_variable(name):
                what = f"unknown exception {name!r}; {nearest(name, known)}"
                what = f"{name!r} is a variable here, so the class cannot be used here" if name in known else what
                self._problems.append(Problem((*place, "except"), what))
        return self._emit(Do.MATCH, matching(self._program, clause.except_) | flags)

    def _handle(self, clause: language.Handler, place: Location, outer: int) -> int:
        """Emits the statements of an `except`, and returns its variable, counted from 1; 0 for none."""
        if clause.as_:
            self._emit(Do.HANDLED)
            self._store(clause.as_)
            self._region = self._new_region(NAME, self._region)
            self._regions[self._region][VARIABLE] = self._variable(clause.as_)
        variable = self._variable(clause.as_) if clause.as_ else 0
        self._blocks.append(Block(HANDLER, variable))
        self._handlers += 1
        self._block(clause.handle, (*place, "handle"))
        self._handlers -= 1
        self._blocks.pop()
        self._region = outer
        self._leave_handler(variable, 0)
        return variable

    def _try_finally(self, form: language.Try, last: list[Statement]) -> None:
        place, outer, depth = self._places[-1], self._region, self._depth
        body = self._new_region(FINALLY, outer)
        self._tries += 1
        self._region = body
        self._blocks.append(Block(FINALLY, 0, outer, last, (*place, "finally")))
        position, first = self._position, len(self._instructions)
        self._position = (*position, first, 1)
        if not form.clauses:
            self._block(form.try_, (*place, "try"))
        else:
            self._try_except(form)
        self._blocks.pop()
        self._region = outer
        if any(map(returns, last)):
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
