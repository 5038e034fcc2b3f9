"""The attributes and methods of a program's classes: what is written about them in the program."""

from collections.abc import Iterator

from replay.objects.flow import blocks
from replay.objects.language import FINALIZER, INIT, SELF, Program, Set, Statement
from replay.support.yaml_documents import Problem


def attributes(program: Program) -> list[str]:
    """Returns the attributes that instances can have: all slots, methods, and what is set if there are classes without
    slots."""
    classes = program.classes.values()
    names = [slot for kind in classes for slot in kind.slots or ()]
    names += [method for kind in classes for method in kind.methods if method not in (INIT, FINALIZER)]
    if any(kind.slots is None for kind in classes):
        functions = [*program.functions.values(), *(each for kind in classes for each in kind.methods.values())]
        for body in [*(each.do for each in functions), program.main]:
            names += (name for _, name in _set_attributes(body))
    return list(dict.fromkeys(names))


def own_attributes(program: Program) -> list[list[str]]:
    """Returns the attributes that the methods of each class assign to `self`, in order of name."""
    return [
        sorted({name for each in kind.methods.values() for owner, name in _set_attributes(each.do) if owner == SELF})
        if kind.slots is None
        else []
        for kind in program.classes.values()
    ]


def clashes(program: Program) -> Iterator[Problem]:
    """Yields a problem for each method that has the name of a slot of its class, and for classes that contradict
    themselves."""
    for name, kind in program.classes.items():
        if kind.weakref and kind.slots is None:
            yield Problem(("classes", name, "weakref"), "is for classes with `slots`; others always can")
        if FINALIZER in kind.methods and kind.methods[FINALIZER].parameters:
            yield Problem(("classes", name, "methods", FINALIZER, "parameters"), f"{FINALIZER} has no parameters")
        for method in kind.methods:
            if method in (kind.slots or ()):
                yield Problem(("classes", name, "methods", method), "is the name of a slot too")


def _set_attributes(body: list[Statement]) -> Iterator[tuple[str, str]]:
    """Yields the attributes that statements set, each as the object before the last dot, and the name."""
    for form in body:
        if isinstance(form, Set):
            for place in form.set:
                owner, dot, name = place.rpartition(".")
                if dot:
                    yield owner, name
        for inner in blocks(form):
            yield from _set_attributes(inner)
