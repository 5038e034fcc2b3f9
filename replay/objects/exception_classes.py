"""The classes of exceptions of a program: built-in ones, and classes of the program that derive from them.

Their numbers are those of EXCEPTIONS, and after them those of all classes of the program.
"""

from collections.abc import Iterator

from replay.objects.handlers import CLASS_BITS
from replay.objects.language import EXCEPTIONS, INIT, Program
from replay.support.names import nearest
from replay.support.yaml_documents import Problem

STOP_ITERATION = "StopIteration"
"""The class that only `next` raises."""


def class_names(program: Program) -> list[str]:
    """Returns the names of all classes by number, also of those that are no exceptions."""
    return [*EXCEPTIONS, *program.classes]


def exception_names(program: Program) -> list[str]:
    """Returns the names of the classes of exceptions."""
    return [*EXCEPTIONS, *(name for name, kind in program.classes.items() if kind.base)]


def exception_number(program: Program, name: str) -> int:
    """Returns the number of a class."""
    return class_names(program).index(name)


def with_init(program: Program, name: str) -> str | None:
    """Returns the class whose `__init__` a class of the program has, its own or an inherited one; None for none."""
    found = (
        each for each in _bases(program, name) if each in program.classes and INIT in program.classes[each].methods
    )
    return next(found, None)


def matching(program: Program, names: str | list[str]) -> int:
    """Returns the argument of MATCH: a bit for each class that `except` matches, and the length of its tuple."""
    wanted = {names} if isinstance(names, str) else {*names}
    bits = sum(1 << index for index, name in enumerate(class_names(program)) if wanted & {*_bases(program, name)})
    return bits | (0 if isinstance(names, str) else len(names)) << CLASS_BITS


def _bases(program: Program, name: str) -> list[str]:
    """Returns the name of a class, and of the classes that it derives from."""
    found = [name]
    while name not in EXCEPTIONS or EXCEPTIONS[name] != name:
        base = EXCEPTIONS[name] if name in EXCEPTIONS else program.classes[name].base
        if not base or base in found:
            break
        found.append(base)
        name = base
    return found


def wrong_bases(program: Program) -> Iterator[Problem]:
    """Yields a problem for each class with `base` that is not supported."""
    known = [*EXCEPTIONS]
    for number, (name, kind) in enumerate(program.classes.items(), len(EXCEPTIONS)):
        place = "classes", name, "base"
        if kind.base and kind.base not in known:
            is_later = kind.base in program.classes and program.classes[kind.base].base
            what = "is not before this class" if is_later else f"is no class of exceptions; {nearest(kind.base, known)}"
            yield Problem(place, f"{kind.base!r} {what}")
        if kind.base == STOP_ITERATION:
            yield Problem(place, f"no class can derive from {STOP_ITERATION} here")
        if kind.base and number >= CLASS_BITS:
            yield Problem(place, f"only the first {CLASS_BITS - len(EXCEPTIONS)} classes can have `base`")
        if kind.base and kind.slots is not None:
            yield Problem(("classes", name, "slots"), "is not supported in a class with `base`")
        if kind.base:
            known.append(name)
