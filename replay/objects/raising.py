"""Compiles `raise` and `try` of an object program, and what a `return` leaves."""

from replay.objects import language
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
    LOOP,
    NAME,
    RETURN_COPY,
    TARGET,
    VARIABLE,
    Block,
    exception_index,
    matching,
)
from replay.objects.instructions import Do
from replay.objects.language import Statement
from replay.support.names import nearest
from replay.support.yaml_documents import Location, Problem


class Raising(Expressions):
    """Emits statements of exceptions, and the regions in which exceptions have handlers."""

    def _block(self, body: list[Statement], place: Location) -> None:
        raise NotImplementedError

    def _raise(self, form: language.Raise) -> None:
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

    def _try(self, form: language.Try) -> None:
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
