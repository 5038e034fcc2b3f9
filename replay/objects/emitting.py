"""Emits the instructions of an object program: names of variables, constants, depths of CPython's stack."""

from collections.abc import Iterator

from replay.objects.attributes import attributes
from replay.objects.constants import Constant, FunctionValue
from replay.objects.flow import has_yield
from replay.objects.handlers import TRIES_BITS, Block
from replay.objects.instructions import MORE, SLOT_BITS, Do, effect
from replay.objects.language import SELF, Expression, Program
from replay.objects.scopes import Scope
from replay.support.names import nearest
from replay.support.yaml_documents import Location, Problem


class Emitter:
    """The instructions so far, and the function that is being compiled."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._functions = [*program.functions]
        generators = {name for name, each in program.functions.items() if has_yield(each.do)}
        self._coroutines = {name for name, each in program.functions.items() if each.coroutine} - generators
        self._generators = generators | self._coroutines
        self._classes = [*program.classes]
        self._attributes = attributes(program)
        self._scopes = [
            Scope(("functions", name, "do"), each.parameters, each.do) for name, each in program.functions.items()
        ]
        for name, kind in program.classes.items():
            self._scopes += [
                Scope(("classes", name, "methods", method, "do"), [SELF, *each.parameters], each.do, name=method)
                for method, each in kind.methods.items()
            ]
        self._scope = Scope(("main",), [], program.main)
        self._scopes.append(self._scope)
        self._surveys, self._needs_stack_sizes = True, False
        self._restart()

    def _restart(self) -> None:
        self._instructions: list[tuple[int, int, int, int, int]] = []
        self._constants: list[Constant] = []
        self._places: list[Location] = []
        self._locals: dict[str, int] = {}
        self._names: list[list[str]] = []
        self._problems: list[Problem] = []
        self._slots: dict[tuple[int, int], list[int]] = {}
        self._has_weak_references = False
        self._is_generator = self._is_coroutine = False
        self._yield_distances: Iterator[int] = iter(())
        self._depth = self._deepest = self._deepest_3_8 = 0
        self._regions: list[list[int]] = [[0] * 5]
        self._region_of: list[int] = []
        self._region = 0
        self._blocks: list[Block] = []
        self._position: tuple[int, ...] = ()
        self._positions: list[tuple[int, ...]] = []
        self._layout_now = self._tries = self._handlers = 0
        self._layout: list[int] = []
        self._starts: list[int] = []
        self._has_threads = False

    def _make_cells(self) -> None:
        """Emits the instructions that create the cells of a function, in the order of both ranges of releases."""
        scope = self._scope
        now = sorted(scope.cells, key=lambda name: self._cell(name)[0])
        for name, name_3_10 in zip(now, scope.cells, strict=True):
            source = scope.parameters.index(name_3_10) + 1 if name_3_10 in scope.parameters else 0
            self._emit(Do.MAKE_CELL, self._cell(name)[0], self._cell(name_3_10)[1] + (source << SLOT_BITS))

    def _cell(self, name: str) -> tuple[int, int]:
        """Returns the slot of a cell from 3.11 on, and that up to 3.10."""
        scope = self._scope
        own = len(scope.fast) + [*scope.cells, *scope.free].index(name)
        return scope.parameters.index(name) if name in scope.parameters else own, own

    def _in_cell(self, name: str) -> bool:
        return name in self._scope.cells or name in self._scope.free

    def _emit(self, do: Do, argument: int = 0, other: int = 0) -> int:
        self._reach(MORE.get(do, 0))
        self._depth += effect(do, argument, self._program)
        self._reach(0)
        self._instructions.append((int(do), argument, other, len(self._places) - 1, 0))
        self._region_of.append(self._region)
        self._layout.append(self._layout_now | self._tries << TRIES_BITS)
        self._tries = 0
        self._positions.append((*self._position, len(self._instructions)))
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

    def _store(self, name: str) -> None:
        self._scope.bound.add(name)
        if self._in_cell(name):
            self._emit(Do.STORE_CELL, *self._cell(name))
        else:
            self._emit(Do.STORE, self._locals.setdefault(name, len(self._locals)))

    def _slot(self, name: str) -> int:
        if name not in self._locals:
            known = [*self._locals, *self._scope.cells, *self._scope.free]
            self._problem(f"{name!r} is not bound here; {nearest(name, known)}")
        return self._locals.setdefault(name, len(self._locals))

    def _load(self, place: str) -> None:
        name, *attributes = place.split(".")
        self._scope.used.add(name)
        if self._in_cell(name):
            self._emit(Do.LOAD_CELL, *self._cell(name))
        elif name in self._functions and not self._scope.is_local(name):
            if name in self._generators:
                kind = "coroutine" if name in self._coroutines else "generator"
                self._problem(f"{name!r} is a {kind} function, which can only be called by its name")
            self._constant(FunctionValue(self._functions.index(name)))
        else:
            self._emit(Do.LOAD, self._slot(name))
        for attribute in attributes:
            self._emit(Do.ATTRIBUTE, self._attribute(attribute))

    def _attribute(self, name: str) -> int:
        if name not in self._attributes:
            self._problem(f"no class has the attribute {name!r}; {nearest(name, self._attributes)}")
            return 0
        return self._attributes.index(name)

    def _called(self, name: str, arguments: list[Expression]) -> int | None:
        """Returns the number of a function of the program that is called with arguments; None if it is unknown."""
        if name not in self._functions:
            self._problem(f"unknown function {name!r}; {nearest(name, [*self._functions, *self._scope.defined])}")
            return None
        wanted = len(self._program.functions[name].parameters)
        if wanted != len(arguments):
            self._problem(f"{name} has {wanted} parameters, and is called with {len(arguments)}")
        return self._functions.index(name)

    def _wait(self, place: str, do: Do) -> None:
        self._load(place)
        self._emit(do)
        self._has_threads = True
