"""Features of object programs that cannot be combined in one program yet."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from replay.objects import language
from replay.objects.language import Program
from replay.support.yaml_documents import Form, Location, Problem

FEATURES: dict[str, tuple[type[Form], ...]] = {
    "exceptions": (language.Raise, language.Try),
    "inner functions and methods": (language.Define,),
    "threads": (
        language.Start, language.Acquire, language.Release, language.Put, language.Take, language.Sleep, language.Work,
        language.NewLock, language.NewQueue,
    ),
    "generators": (language.Yield, language.Next, language.Close),
    "coroutines and `yield from`": (language.Await, language.Steps, language.YieldFrom),
    "weak references and finalizers": (language.Weakref, language.Referent, language.IfNone),
}  # fmt: skip
"""The forms of each feature. Methods are no form."""
SUPPORTED = {
    ("inner functions and methods", "threads"),
    ("exceptions", "inner functions and methods"),
    ("exceptions", "threads"),
    ("inner functions and methods", "generators"),
    ("exceptions", "generators"),
    ("generators", "coroutines and `yield from`"),
    ("inner functions and methods", "weak references and finalizers"),
    ("exceptions", "weak references and finalizers"),
    ("exceptions", "coroutines and `yield from`"),
    ("generators", "weak references and finalizers"),
    ("coroutines and `yield from`", "weak references and finalizers"),
    ("inner functions and methods", "coroutines and `yield from`"),
}
"""Pairs of features that can be combined."""


def unsupported(program: Program) -> Iterator[Problem]:
    """Yields a problem for each pair of features that the program combines, and that cannot be combined."""
    places = {name: place for name in FEATURES if (place := _place_of(program, name)) is not None}
    for first, second in combinations(places, 2):
        if (first, second) not in SUPPORTED:
            yield Problem(places[second], f"{second} are not supported in a program with {first} yet")


def _place_of(program: Program, feature: str) -> Location | None:
    """Returns the first function that uses a feature, or the first method."""
    if feature == "coroutines and `yield from`":
        for name, function in program.functions.items():
            if function.coroutine:
                return "functions", name, "coroutine"
    if feature == "inner functions and methods":
        for name, kind in program.classes.items():
            for method in kind.methods:
                return "classes", name, "methods", method
    if feature == "weak references and finalizers":
        for name, kind in program.classes.items():
            if language.FINALIZER in kind.methods:
                return "classes", name, "methods", language.FINALIZER
    bodies: list[tuple[Location, Any]] = [
        *((("classes", name, "methods"), kind.methods) for name, kind in program.classes.items()),
        *((("functions", name), each.do) for name, each in program.functions.items()),
        (("main",), program.main),
    ]
    wanted = FEATURES[feature]
    return next((place for place, body in bodies if any(isinstance(form, wanted) for form in _forms(body))), None)


def _forms(value: Any) -> Iterator[Form]:
    """Yields all forms in a value of the program."""
    if isinstance(value, Form):
        yield value
        for name in type(value).model_fields:
            yield from _forms(getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _forms(each)
    elif isinstance(value, dict):
        yield from _forms([*value.values()])
