"""Compiles an object program: one function after the other, `main` last."""

import numpy as np

from replay.objects.attributes import clashes, own_attributes
from replay.objects.code_units import yield_places
from replay.objects.combinations import unsupported
from replay.objects.exception_classes import wrong_bases
from replay.objects.handlers import REGION
from replay.objects.instructions import (
    AWAITABLE,
    COROUTINE,
    EXCEPTIONAL,
    FUNCTION,
    INSTRUCTION,
    SMALL_PLACE,
    Code,
    Do,
)
from replay.objects.language import FINALIZER, INIT, Program
from replay.objects.scopes import Scope, find_cells
from replay.objects.stack_sizes import UnknownFormError, stack_size
from replay.objects.statements import Statements
from replay.support.yaml_documents import Problem


def compile_program(program: Program) -> tuple[Code | None, list[Problem]]:
    """Returns the code of a program, `main` last of its functions; or what is wrong with it."""
    return _Compiler(program).compile()


class _Compiler(Statements):
    """Compiles the functions of a program."""

    def compile(self) -> tuple[Code | None, list[Problem]]:
        if problems := [*unsupported(self._program)]:
            return None, problems
        main = self._scope
        for scope in self._scopes:  # a first pass finds more of them
            self._function(scope)
        self._scopes.remove(main)
        self._scopes.append(main)
        for number, scope in enumerate(self._scopes):
            scope.number = number
        find_cells(self._scopes)
        self._surveys, self._needs_stack_sizes = False, bool(self._generators) or len(self._regions) > 1
        self._restart()
        self._problems += [
            Problem(("classes", name), "is the name of a function too")
            for name in self._classes
            if name in self._functions
        ]
        self._problems += [*clashes(self._program), *wrong_bases(self._program)]
        self._problems += [
            Problem(("classes", name, "methods", method, "coroutine"), "is supported in the program's functions only")
            for name, kind in self._program.classes.items()
            for method, function in kind.methods.items()
            if function.coroutine
        ]
        functions = [self._function(scope) for scope in self._scopes]
        self._add_threads()
        end_call = self._add_end_call()
        if self._problems:
            return None, self._problems
        classes = self._program.classes.values()
        kinds = [kind.slots and sorted(kind.slots) for kind in classes]  # CPython sorts them
        counts = [EXCEPTIONAL if kind.base else len(kind.slots) if kind.slots else -1 for kind in classes]
        slots = [[kind.index(name) if kind and name in kind else -1 for name in self._attributes] for kind in kinds]
        code = Code(
            np.array(self._instructions, INSTRUCTION),
            np.array(functions, FUNCTION),
            np.array(counts, np.int64),
            np.array(slots, np.int64).reshape(len(slots), len(self._attributes)),
            self._methods(),
            [[self._attributes.index(name) for name in own] for own in own_attributes(self._program)],
            np.array(self._region_of, np.int64),
            np.array([tuple(region) for region in self._regions], REGION),
            self._constants,
            self._places,
            self._attributes,
            self._names,
            np.array(self._layout, np.int64),
            self._positions,
            self._slots,
            self._finalizers(),
            end_call,
            self._has_threads,
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
        self._is_generator = not scope.name and scope.place[0] == "functions" and scope.place[1] in self._generators
        self._is_coroutine = self._is_generator and scope.place[1] in self._coroutines
        self._yield_distances = iter(self._distances(scope) if self._is_generator else [])
        if self._needs_stack_sizes and not self._surveys:
            self._add_slots(scope)
        self._make_cells()
        self._block(scope.body, scope.place)
        self._constant(None)
        self._emit(Do.END_GENERATOR if self._is_generator else Do.RETURN)
        self._names.append([*self._locals, *scope.cells, *scope.free])
        count = len(scope.fast) + len(scope.cells) + len(scope.free)
        stack = self._deepest, self._deepest_3_8
        return start, len(scope.parameters), count, *stack, 0, 0, 0, len(scope.free), 0, 0, self._coroutine(scope)

    def _coroutine(self, scope: Scope) -> int:
        """Returns the field `coroutine` of a function."""
        declared = not scope.name and scope.place[0] == "functions" and self._program.functions[str(scope.place[1])]
        return (COROUTINE if self._is_coroutine else AWAITABLE) if declared and declared.coroutine else 0

    def _methods(self) -> np.ndarray:
        """Returns the function of each method in each class."""
        found = np.full((len(self._classes), len(self._attributes)), -1, np.int64)
        for scope in self._scopes:
            if scope.method and scope.method not in (INIT, FINALIZER):
                found[self._classes.index(str(scope.place[1])), self._attributes.index(scope.method)] = scope.number
        for row, kind in zip(found, self._program.classes.values(), strict=True):
            if kind.base in self._classes:
                inherited = found[self._classes.index(kind.base)]
                row[row < 0] = inherited[row < 0]
        return found

    def _add_slots(self, scope: Scope) -> None:
        """Notes the number of variables and values of a function in CPython, by release."""
        variables = len({*scope.fast, *scope.cells}) + len(scope.free)
        cells = {form: len(each.free) for form, each in scope.inner.items()}
        try:
            for release in ((3, minor) for minor in range(11, 16)):
                size = stack_size(scope.body, release, self._is_generator, cells)
                self._slots.setdefault(release, []).append(variables + size)
        except UnknownFormError as error:
            what = f"{error} is not supported in a program with exceptions or generators"
            self._problems.append(Problem(scope.place, what))

    def _distances(self, scope: Scope) -> list[int]:
        """Returns for each `yield` whether an integer of its place is a new object in 3.12: 0 if not, 1 if so, 2 if
        that is not known."""
        try:
            functions = [name for name in self._functions if not scope.is_variable(name)]
            places = yield_places(scope.body, functions)
        except UnknownFormError:  # reported with the stack sizes
            return []
        far = [(place.least > SMALL_PLACE, place.largest > SMALL_PLACE) for place in places]
        return [int(least) if least == largest else 2 for least, largest in far]

    def _finalizers(self) -> list[int]:
        """Returns the function that finalizes instances of each class, -1 for none."""
        numbers = {scope.place[1]: scope.number for scope in self._scopes if scope.method == FINALIZER}
        return [numbers.get(name, -1) for name in self._classes]

    def _add_end_call(self) -> int:
        """Adds the instruction after finalizers and callbacks; returns its place, 0 if there are none."""
        if not self._has_weak_references and max(self._finalizers(), default=-1) < 0:
            return 0
        self._instructions.append((int(Do.END_CALL), 0, 0, 0, 0))
        self._region_of, self._layout = [*self._region_of, 0], [*self._layout, 0]
        self._positions.append(())
        return len(self._instructions) - 1

    def _add_threads(self) -> None:
        """Adds the code of threads: each calls its function."""
        for start in self._starts:
            do, function, _, line, runs = self._instructions[start]
            self._instructions[start] = do, function, len(self._instructions), line, runs
            self._instructions += [
                (int(each), function, 0, line, 0) for each in (Do.BEGIN_THREAD, Do.CALL, Do.LEAVE_THREAD, Do.END_THREAD)
            ]
        without = [0] * (len(self._instructions) - len(self._region_of))
        self._region_of, self._layout = self._region_of + without, self._layout + without
        self._positions += [()] * len(without)
