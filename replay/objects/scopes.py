"""Which function has which variables: local ones, those of functions around it, and cells for both.

A name is local to a function that binds it, unless the function lists it as `nonlocal`. Another name is a variable of
the nearest function around it that has one of this name. A variable that an inner function uses lives in a cell,
which is an object; `cells` are those of a function, `free` those that it gets with its closure. CPython sorts both.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from replay.objects.language import Statement
from replay.support.yaml_documents import Location


@dataclass(eq=False)
class Scope:
    """A function, and the names in it. `used`, `bound`: filled by a first pass over the program."""

    place: Location
    """Where its statements are."""
    parameters: list[str]
    body: list[Statement]
    outer: "Scope | None" = None
    nonlocals: tuple[str, ...] = ()
    name: str = ""
    """Its name, if it is a method or in another function."""
    number: int = 0
    """Its place among the functions of the program."""
    used: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
    inner: "dict[int, Scope]" = field(default_factory=dict)
    """The functions defined in it, by the identity of their statement."""
    cells: list[str] = field(default_factory=list)
    free: list[str] = field(default_factory=list)

    def is_local(self, name: str) -> bool:
        """Whether a name is a variable of this function itself."""
        return name in self.parameters or (name in self.bound and name not in self.nonlocals)

    def is_variable(self, name: str) -> bool:
        """Whether a name is a variable here: of this function, or of one around it."""
        return name in self.free or self.is_local(name)

    @property
    def method(self) -> str:
        """Its name, if it is a method."""
        return self.name if self.outer is None else ""

    @property
    def defined(self) -> list[str]:
        """The names of the functions defined in it, and in those around it."""
        return [*(each.name for each in self.inner.values()), *(self.outer.defined if self.outer else ())]

    @property
    def fast(self) -> set[str]:
        """The variables that are not in cells; also parameters that are moved to cells."""
        return {*self.parameters} | {name for name in self.bound if self.is_local(name) and name not in self.cells}


def find_cells(scopes: Iterable[Scope]) -> None:
    """Fills `cells` and `free` of functions that are in no other function, and of those in them."""
    for scope in scopes:
        if scope.outer is None:
            _close(scope)


def _close(scope: Scope) -> set[str]:
    """Fills `cells` and `free` of a function; returns the names of `free`."""
    needed = {*scope.used, *scope.bound, *scope.nonlocals}
    captured: set[str] = set()
    for inner in scope.inner.values():
        captured |= _close(inner)
    scope.cells = sorted(filter(scope.is_local, captured))
    free = {name for name in needed | captured if not scope.is_local(name) and _is_found(scope.outer, name)}
    scope.free = sorted(free)
    return free


def _is_found(scope: Scope | None, name: str) -> bool:
    """Whether a function, or one around it, has a variable of this name."""
    return scope is not None and (scope.is_local(name) or _is_found(scope.outer, name))
