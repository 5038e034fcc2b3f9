"""Statements of random object programs that define and call functions, methods and constructors."""

import random
from typing import Any

Names = dict[str, str]
APPLY = {"parameters": ["g"], "do": [{"bind": {"r": {"call": "g"}}}, {"return": "r"}]}
"""A function that calls its argument."""
_MOST = 3
"""Parameters of a function."""


def callable_kind(parameters: int) -> str:
    """Returns the kind of a name that refers to a function or bound method with so many parameters."""
    return f"function of {parameters}"


_KINDS = [callable_kind(count) for count in range(_MOST + 1)]


class Callables:
    """The part of the author of a random program that writes functions in functions, and classes with methods."""

    _random: random.Random
    _depth: int
    _classes: dict[str, dict[str, Any]]

    has_callables = True
    """Whether to write them."""

    def __init__(self) -> None:
        self._captured: set[str] = set()
        self._ready: list[str] = []
        self._methods: dict[str, dict[str, int]] = {}
        self._inits: dict[str, int] = {}
        self._returns = True

    # Classes

    def _write_methods(self, name: str) -> None:
        """Gives a class methods. Their statements use only what is complete, so no call recurs."""
        self._methods[name] = {}
        methods: dict[str, Any] = {}
        for index in range(self._random.choice([0, 1, 2, 3])):
            method = "__init__" if index == 0 and self._random.random() < 0.7 else f"m{index}"
            count = self._random.randint(0, _MOST)
            if method == "__init__" and self._random.random() < 0.2:
                count = self._random.choice([4, 5, 8, 11])
            parameters = [f"a{number}" for number in range(count)]
            self._returns = method != "__init__"
            methods[method] = {"parameters": parameters, "do": self._body({"self": name}, parameters)}
            self._returns = True
            if method == "__init__":
                self._inits[name] = count
            else:
                self._methods[name][method] = count
        if methods:
            self._classes[name]["methods"] = methods
        self._ready.append(name)

    def _body(self, names: Names, parameters: list[str]) -> list[Any]:
        """Returns the statements of a function in which these names are known."""
        inner = {**names, **dict.fromkeys(parameters, "any")}
        self._depth += 1
        body = self._block(inner, self._random.randint(1, 4))
        if self._returns and self._random.random() < 0.7 and not self._never_completes(body):
            body.append({"return": self._value(inner, 2)})
        self._depth -= 1
        return body

    def _new(self, names: Names, depth: int) -> Any:
        if not self._ready:
            return {"tuple": []}
        name = self._random.choice(self._ready)
        values = [self._value(names, depth - 1) for _ in range(self._inits.get(name, 0))]
        return {"new": name, **({"with": values} if values else {})}

    # Statements

    def _use_callable(self, names: Names, own: list[str]) -> list[Any]:
        """Returns statements that define or call something."""
        chance = self._random.random()
        known, instance = self._pick(names, *_KINDS), self._pick(names, *self._methods)
        if chance < 0.45:
            new = self._new(names, 2)
            made = [self._bind(names, own, new)] if "new" in new and (not instance or chance < 0.1) else []
            instance = next(iter(made[0]["bind"])) if made else instance
            methods = [*self._methods[names[instance]]] if instance else []
            return [*made, *(self._use_method(names, instance, self._random.choice(methods)) if methods else [])]
        if known and chance < 0.6:
            return [self._call_known(names, known, 2)]
        if chance < 0.64:
            return self._end_in_call()
        return self._define(names, own)

    def _define(self, names: Names, own: list[str]) -> list[Any]:
        name, count = self._new_name(), self._random.randint(0, _MOST)
        returns, self._returns = self._returns, True
        used = {each: kind for each, kind in names.items() if self._random.random() < 0.6}
        changed = [each for each in own if names.get(each) in ("any", "int") and self._random.random() < 0.3]
        self._captured |= {*names, name}
        body: list[Any] = []
        for each in changed:
            value = self._number(used, 2) if names[each] == "int" else self._value(used, 2)
            body.append({"bind": {each: value}})
            used[each] = names[each]
        inner = {**used, name: "any"} if self._random.random() < 0.4 else used
        body += self._body(inner, [f"b{number}{name}" for number in range(count)])
        self._returns = returns
        names[name] = callable_kind(count)
        parameters = [f"b{number}{name}" for number in range(count)]
        made: dict[str, Any] = {"define": name, "parameters": parameters, "do": body}
        return [{**made, **({"nonlocal": changed} if changed else {})}]

    def _call_known(self, names: Names, name: str, depth: int) -> Any:
        count = _KINDS.index(names[name])
        if count == 0 and self._random.random() < 0.3:
            return {"call": "apply", "with": [name]}
        return {"call": name, "with": [self._value(names, depth - 1) for _ in range(count)]}

    def _use_method(self, names: Names, instance: str, method: str) -> list[Any]:
        count, chance = self._methods[names[instance]][method], self._random.random()
        values = [self._value(names, 1) for _ in range(count)]
        if chance < 0.5:
            return [{"call": f"{instance}.{method}", "with": values}]
        name = self._new_name()
        bound = {"bind": {name: f"{instance}.{method}"}}
        if chance < 0.75:
            names[name] = callable_kind(count)
            self._captured.add(name)
            return [bound]
        if chance < 0.85 and count:  # the stack has the last reference to the bound method
            drop = {"define": f"{name}d", "nonlocal": [name], "do": [{"drop": [name]}]}
            return [bound, drop, {"call": name, "with": [{"call": f"{name}d"}, *values[1:]]}]
        slots = self._classes[names[instance]].get("slots", ["p", "q"])
        place = f"{instance}.{self._random.choice(slots)}"
        return [{"set": {place: f"{instance}.{method}"}}, {"call": place, "with": values}]

    def _end_in_call(self) -> list[Any]:
        """Returns a function that drops the last reference to itself."""
        name = self._new_name()
        self._captured.add(name)
        body = [{"drop": [name]}, {"bind": {"y": {"letters": 70}}}, {"return": "y"}]
        return [{"define": name, "nonlocal": [name], "do": body}, {"call": name}]
