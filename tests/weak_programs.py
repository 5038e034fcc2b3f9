"""Random object programs with weak references, callbacks, finalizers that resurrect, and frequent collections.

Some have generators and exceptions too.
"""

import random
from typing import Any

from object_programs import kept, object_program

from replay.objects import ObjectProgram

REFERABLE = ("K", "S", "D", "E")
PLAIN = ("K", "S", "T")
"""Classes without parameters."""
_PARAMETERS = ["kept", "refs", "w", "m", "g"]
"""Variables of `main` that generator functions get."""


@kept
def random_weak_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed."""
    return object_program(_Author(seed).document())


def random_weak_generator_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed that also has generators and exceptions."""
    return object_program(_RaisingAuthor(seed).document())


class _Author:
    """Writes programs. Names of lists that exist everywhere: `kept`, what finalizers and callbacks keep, and `refs`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names = 0
        self._is_in_code = False
        """Whether it writes a finalizer or callback."""
        self._callbacks: list[str] = []
        """What can be a callback. A callback that creates weak references with itself as their callback has no end."""

    def document(self) -> dict[str, Any]:
        choose = self._random.choice
        init = {"parameters": ["kept", "refs"], "do": [{"set": {"self.kept": "kept", "self.refs": "refs"}}]}
        self._is_in_code = True
        functions = {"f": {"parameters": ["r"], "do": self._callback({})}}
        self._callbacks = ["f"]
        names = {"kept": "self.kept", "refs": "self.refs"}
        finalizers = [{"do": self._block(["self"], names, self._random.randint(1, 4), 1)} for _ in range(2)]
        finalized = {
            "D": {"methods": {"__init__": init, "__del__": finalizers[0]}},
            "E": {"slots": ["p", "q", "kept", "refs"], "weakref": True,
                  "methods": {"__init__": init, "__del__": finalizers[1]}},
        }  # fmt: skip
        note = {"parameters": ["r"], "do": self._callback(names)}
        watcher = {"slots": ["kept", "refs"], "methods": {"__init__": init, "note": note}}
        self._is_in_code = False
        own = {"kept": "kept", "refs": "refs"}
        inner = {"define": "g", "parameters": ["r"], "do": self._callback(own)}
        start = [
            {"bind": {"kept": {"list": []}, "refs": {"list": []}}}, inner,
            {"bind": {"w": {"new": "W", "with": ["kept", "refs"]}, "m": "w.note"}},
        ]  # fmt: skip
        body = self._block([], own, self._random.randint(4, 14), 0)
        main = [*start, {"repeat": choose([1, 3, 12]), "as": "i", "do": body}, {"collect": 2}]
        classes = {"K": {}, "S": {"slots": ["p", "q"], "weakref": True}, "T": {"slots": ["p", "q"]}, "W": watcher}
        thresholds = [choose([1, 2, 3, 7, 20]), choose([0, 1, 3]), choose([0, 1, 4])]
        document = {"classes": {**classes, **finalized}, "functions": functions, "main": main}
        return {**document, "collector": {"thresholds": thresholds, "enabled": self._random.random() < 0.9}}

    def _callback(self, lists: dict[str, str]) -> list[Any]:
        was, self._is_in_code = self._is_in_code, True
        body = self._block([], lists, self._random.randint(0, 3), 1)
        if lists and self._random.random() < 0.3:
            body.append({"append": "r", "to": lists["kept"]})
        if self._random.random() < 0.3:
            body += [{"bind": {"o": {"referent": "r"}}}, {"if_none": "o", "do": [{"bind": {"y": {"letters": 9}}}]}]
        self._is_in_code = was
        return body

    def _new_name(self) -> str:
        self._names += 1
        return f"x{self._names}"

    def _new(self, lists: dict[str, str]) -> Any:
        if lists and not self._is_in_code and self._random.random() < 0.5:
            return {"new": self._random.choice("DE"), "with": [lists["kept"], lists["refs"]]}
        return {"new": self._random.choice(PLAIN)}

    def _value(self, objects: list[str], lists: dict[str, str], depth: int = 2) -> Any:
        chance, choose = self._random.random(), self._random.choice
        if objects and chance < 0.45:
            return choose(objects)
        if chance < 0.6 and depth:
            items = [self._value(objects, lists, depth - 1) for _ in range(self._random.randint(0, 3))]
            return {choose(["list", "tuple"]): items}
        if chance < 0.75:
            return self._new(lists)
        if chance < 0.8 and lists:
            return choose([*lists.values()])
        if chance < 0.84:
            return self._reference({"new": choose(["K", "S"])})
        return {"letters": choose([1, 5, 30])} if chance < 0.95 else choose([1, 2000])

    def _reference(self, referent: Any) -> Any:
        callbacks = self._callbacks if self._is_in_code else [*self._callbacks, "g", "m", "w.note"]
        if not callbacks or self._random.random() < 0.45:
            return {"weakref": referent}
        return {"weakref": referent, "callback": self._random.choice(callbacks)}

    def _block(self, objects: list[str], lists: dict[str, str], length: int, depth: int) -> list[Any]:
        """Returns statements. `objects`: names of instances that can have weak references."""
        objects, references, referable = [*objects], list[str](), list[str](objects)
        found: list[Any] = []
        for _ in range(length):
            found += self._statement(objects, references, referable, lists, depth)
        return found or [{"bind": {"z": 1}}]

    def _statement(
        self, objects: list[str], references: list[str], referable: list[str], lists: dict[str, str], depth: int
    ) -> list[Any]:
        chance, choose, name = self._random.random(), self._random.choice, self._new_name()
        if chance < 0.2 or not objects:
            new = self._new(lists)
            objects.append(name)
            if new["new"] in REFERABLE:
                referable.append(name)
            return [{"bind": {name: new}}]
        if chance < 0.4:
            return [{"set": {f"{choose(objects)}.{choose('pq')}": self._value(objects, lists)}}]
        if chance < 0.52 and referable:
            references.append(name)
            return [{"bind": {name: self._reference(choose(referable))}}]
        if chance < 0.64 and referable and lists:
            made = {
                "append": self._reference(choose(referable)),
                "to": choose([lists["refs"], lists["refs"], lists["kept"]]),
            }
            return [made] * choose([1, 1, 2])
        if chance < 0.7 and references:
            result = {"bind": {name: {"referent": choose(references)}}}
            other = [{"bind": {"y": {"letters": 40}}}]
            return [result, {"if_none": name, "do": other, "otherwise": [{"bind": {name: {"list": [name]}}}]}]
        if chance < 0.75 and len(objects) > 1 and depth == 0:
            name = choose(objects)
            objects.remove(name)
            referable[:] = [each for each in referable if each != name]
            return [{"drop": [name]}]
        if chance < 0.8 and lists:
            return [{"append": self._value(objects, lists), "to": choose([*lists.values()])}]
        if chance < 0.86 and lists:
            return [{"clear": choose([*lists.values()])}]
        if chance < 0.9 and depth == 0:
            grow = [{"bind": {"deep": {choose(["list", "tuple"]): ["deep", self._new(lists)]}}}]
            return [{"bind": {"deep": 0}}, {"repeat": choose([3, 60]), "as": "j", "do": grow}, {"bind": {"deep": 0}}]
        if chance < 0.95:
            return [{"collect": self._random.randint(0, 2)}]
        if depth < 2:
            inner = self._block([each for each in objects if each in referable], lists, 3, depth + 1)
            return [{"choose": self._random.random(), "do": inner}]
        return []


class _RaisingAuthor(_Author):
    """Writes exceptions that keep objects alive, and generators that are suspended in `try`. No exception leaves a
    finalizer, a callback or `main`."""

    def document(self) -> dict[str, Any]:
        document = super().document()
        own = {"kept": "kept", "refs": "refs"}
        for name in ("walk", "step"):
            first, second = self._block([], own, 3, 1), self._block([], own, 2, 1)
            wrapped = self._try([*first, {"yield": 1}, self._raise("kept", 0.2), {"yield": {"letters": 9}}], own)
            body = [{"bind": {"x": self._new(own)}}, wrapped, {"yield": "x"}, *second]
            document["functions"][name] = {"parameters": _PARAMETERS, "do": body}
        return document

    def _raise(self, value: Any, probability: float) -> Any:
        return {
            "choose": probability,
            "do": [{"raise": self._random.choice(["ValueError", "KeyError"]), "with": [value]}],
        }

    def _try(self, body: list[Any], lists: dict[str, str]) -> Any:
        """Returns a `try` whose `finally` or handler runs code."""
        choose = self._random.choice
        form: dict[str, Any] = {"try": body}
        if choose([0, 1]):
            form |= {"finally": self._block([], lists, 2, 1)}
        if len(form) == 1 or choose([0, 1]):
            keep = [{"append": "e", "to": lists["kept"]}] if choose([0, 1]) and lists else []
            form |= {"except": choose(["ValueError", "Exception"]), "as": "e"}
            form |= {"handle": [*keep, *self._block([], lists, 2, 1)]}
        return form

    def _statement(
        self, objects: list[str], references: list[str], referable: list[str], lists: dict[str, str], depth: int
    ) -> list[Any]:
        chance, choose = self._random.random(), self._random.choice
        if chance < 0.15 and depth < 2:
            body = [*self._block(list(objects), lists, 2, depth + 1), self._raise(choose([*objects, 1000]), 0.7)]
            form = {**self._try(body, lists), "except": "Exception", "as": "e"}
            return [{**form, "handle": [{"bind": {"z": "e"}}]}]
        if 0.15 < chance < 0.35 and depth == 0 and not self._is_in_code:
            name, place = self._new_name(), f"{choose(objects)}.p" if objects else None
            found: list[Any] = [{"bind": {name: {"call": choose(["walk", "step"]), "with": _PARAMETERS}}}]
            use: list[Any] = [{"next": name, "default": 0}] * choose([0, 1, 1, 2])
            if use:
                found.append({"try": use, "except": "Exception", "as": "e", "handle": [{"bind": {"z": 0}}]})
            if place and choose([0, 1]):
                found.append({"set": {place: name}})
            end = choose([{"close": name}, {"drop": [name]}, {"append": name, "to": lists["kept"]}, None])
            return [*found, *([end] if end else [])]
        return super()._statement(objects, references, referable, lists, depth)
