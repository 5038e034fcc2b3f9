"""Random object programs without mistakes: names are bound before they are used, indexes are below lengths."""

import random
from functools import lru_cache
from typing import Any

import numpy as np
from object_callables import APPLY, Callables

from replay.objects import ObjectProgram
from replay.objects.code import compile_program
from replay.objects.heap import IMMORTAL
from replay.objects.kinds import Kind
from replay.objects.language import Program
from replay.trace import Domain, Op
from replay.verification.objects import simulate

_NUMBERS = (0, 1, 5, 255, 256, 257, 1000, 1024, 1025, 1 << 20, (1 << 30) - 1, 1 << 30, 1 << 31)
_LENGTHS = (0, 1, 2, 3, 10, 50, 500, 2000)
_ATTRIBUTES = [first + second for second in ("", "1", "2", "3", "4") for first in "pqrstuvw"]
WITH_OWNER = (
    Kind.RANGE, Kind.LIST_ITERATOR, Kind.TUPLE_ITERATOR, Kind.DICT_ITERATOR, Kind.PLACE, Kind.FUNCTION, Kind.CELL,
    Kind.METHOD, Kind.STEPS, Kind.WEAKREF,
)  # fmt: skip
"""Kinds of objects that have a reference in `owner`."""
Names = dict[str, str]
"""The kind of value of each bound name: int, tuple, list, dict, set, generator, the name of a class, or any."""


def object_program(document: dict[str, Any]) -> ObjectProgram:
    """Returns the program of a document that is not in a file."""
    program = Program.model_validate({"kind": "objects", **document})
    code, problems = compile_program(program)
    assert code is not None, problems
    return ObjectProgram("program", program, code, lambda place, what: f"{'.'.join(map(str, place))}: {what}")


kept = lru_cache(maxsize=64)
"""Decorator: keeps the programs of some seeds, because tests run each in many interpreters."""


@kept
def random_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed."""
    return object_program(random_document(seed))


def random_document(seed: int) -> dict[str, Any]:
    """Returns the document of a random program."""
    return RandomAuthor(seed).document()


def _is_chosen(generator: random.Random, probability: float) -> bool:
    """Returns True with a probability."""
    return generator.random() < probability


class RandomAuthor(Callables):
    """Writes random programs."""

    _has_generators = False
    """Whether some functions are generator functions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._names = self._depth = 0
        self._classes = {f"K{index}": self._class() for index in range(self._random.randint(1, 3))}
        self._parameters: dict[str, int] = {}
        self._generators: set[str] = set()
        self._yields = False

    def _class(self) -> dict[str, Any]:
        has_dict = self._random.random() < 0.5
        return {} if has_dict else {"slots": self._random.sample("pqrstuvw", self._random.randint(1, 5))}

    def document(self) -> dict[str, Any]:
        functions: dict[str, Any] = {"apply": APPLY} if self.has_callables else {}
        for name in self._classes:
            if self.has_callables:
                self._write_methods(name)
            else:
                self._ready.append(name)
        for index in range(self._random.randint(0, 4)):
            parameters = [f"a{number}" for number in range(self._random.randint(0, 3))]
            names = dict.fromkeys(parameters, "any")
            self._yields = self._has_generators and _is_chosen(self._random, 0.4)
            body = self._block(names, self._random.randint(1, 5))
            if self._yields:
                body.insert(self._random.randint(0, len(body)), {"yield": self._number({}, 0)})
                self._generators.add(f"f{index}")
            elif self._random.random() < 0.7 and not self._never_completes(body):
                body.append({"return": self._value(names, 2)})
            self._yields = False
            functions[f"f{index}"] = {"parameters": parameters, "do": body}
            self._parameters[f"f{index}"] = len(parameters)
        main = self._main()
        choose = self._random.choice
        collector = {
            "enabled": _is_chosen(self._random, 0.9),
            "thresholds": [choose((0, 1, 2, 3, 10, 50, 700)), choose((0, 1, 2, 10)), choose((0, 1, 3, 10))],
        }
        document = {"seed": 7, "classes": self._classes, "functions": functions, "main": main}
        return {**document, "collector": collector} if _is_chosen(self._random, 0.7) else document

    def _main(self) -> list[Any]:
        return self._block({}, self._random.randint(3, 10))

    def _new_name(self) -> str:
        self._names += 1
        return f"x{self._names}"

    def _pick(self, names: Names, *kinds: str) -> str | None:
        found = [name for name, kind in names.items() if not kinds or kind in kinds]
        return self._random.choice(found) if found else None

    # Expressions

    def _number(self, names: Names, depth: int) -> Any:
        chance, name = self._random.random(), self._pick(names, "int")
        if depth <= 0 or chance < 0.25:
            return self._random.choice(_NUMBERS)
        if name and chance < 0.6:
            return name
        if chance < 0.85:
            return {"sum": [self._number(names, depth - 1), self._number(names, depth - 1)]}
        sequence = self._pick(names, "list", "tuple", "dict", "set")
        if sequence and chance < 0.93:
            return {"length": sequence}
        return {"product": [self._random.choice([0, 1, 3, 200]), self._number(names, 0)]}

    def _value(self, names: Names, depth: int) -> Any:
        chance, name = self._random.random(), self._pick(names)
        if name and chance < 0.3:
            return name
        if depth <= 0 or chance < 0.38:
            return self._number(names, 1)
        if chance < 0.42:
            return {"text": "abc"[: self._random.randint(0, 3)]}
        if chance < 0.53:
            return {self._random.choice(["letters", "bytes"]): self._random.choice(_LENGTHS)}
        if chance < 0.6:
            return {"half": self._number(names, 2)}
        if chance < 0.8:
            length = self._random.choice([0, 1, 2, 3, 5, 19, 20, 21] if self._random.random() < 0.2 else [0, 1, 2, 3])
            items = [self._value(names, depth - 1) for _ in range(length)]
            return {self._random.choice(["tuple", "list"]): items}
        if chance < 0.84:
            return self._dict(names, depth)
        if chance < 0.86:
            return self._set(names)
        if chance < 0.92 or not self._parameters:
            return self._new(names, depth)
        if chance < 0.94:
            return self._random.choice([name for name in self._parameters if name not in self._generators] or [0])
        return self._call(names, depth)

    def _dict(self, names: Names, depth: int) -> Any:
        length = self._random.choice([0, 1, 2, 5, 6, 7, 11, 15] if self._random.random() < 0.3 else [0, 1, 2])
        are_constants = self._random.random() < 0.5
        pairs = [[self._key({} if are_constants else names), self._value(names, depth - 1)] for _ in range(length)]
        return {"dict": pairs}

    def _set(self, names: Names) -> Any:
        are_constants = self._random.random() < 0.5
        length = self._random.choice([0, 1, 2, 3, 4, 5, 6, 10, 15])
        return {"set": [self._number({} if are_constants else names, not are_constants) for _ in range(length)]}

    def _key(self, names: Names) -> Any:
        chance = self._random.random()
        if chance < 0.3:
            return {"text": "".join(self._random.choices("xy", k=self._random.randint(0, 2)))}
        if chance < 0.5 and names:
            return {"letters": self._random.randint(0, 4)}
        return self._number(names, 1 if names else 0)

    def _call(self, names: Names, depth: int) -> Any:
        function = self._random.choice([*self._parameters])
        arguments = [self._value(names, depth - 1) for _ in range(self._parameters[function])]
        return {"call": function, "with": arguments}

    def _kind(self, value: Any, names: Names) -> str:
        if isinstance(value, int):
            return "int"
        if isinstance(value, str):
            return names.get(value, "any")
        key = next(iter(value))
        known = {"sum": "int", "product": "int", "length": "int", "tuple": "tuple", "list": "list"}
        known |= {"dict": "dict", "set": "set"}
        if key == "call" and value["call"] in self._generators:
            return "generator"
        return value["new"] if key == "new" else known.get(key, "any")

    # Statements

    def _block(self, names: Names, length: int) -> list[Any]:
        """Returns statements, and adds what they bind to `names`."""
        statements: list[Any] = []
        own: list[str] = []
        for _ in range(length):
            statements += self._statement(names, own)
            if self._never_completes(statements[-1:]):
                break
        return statements or [{"bind": {"z": 0}}]

    def _statement(self, names: Names, own: list[str]) -> list[Any]:
        table = self._pick(names, "dict")
        if table and self._random.random() < 0.2:
            return self._change_dict(names, table)
        if self._random.random() < 0.1:
            return self._change_set(names, own)
        if not table and self._random.random() < 0.15:
            return [self._bind(names, own, self._dict(names, 2))]
        if self.has_callables and self._random.random() < 0.2 and self._depth < 4:
            return self._use_callable(names, own)
        chance = self._random.random()
        if _is_chosen(self._random, 0.04):
            return [self._collection()]
        if self._yields and _is_chosen(self._random, 0.25):
            return [{"yield": self._value(names, 2)}]
        if self._generators and _is_chosen(self._random, 0.25):
            return self._use_generator(names, own)
        if chance < 0.4 or not names:
            return [self._bind(names, own, self._value(names, 3))]
        if chance < 0.5 and (name := self._pick(names, "list")):
            statements: list[Any] = [{"append": self._value(names, 2), "to": name}]
            if self._random.random() < 0.3:
                statements.append({"pop": name})
            if self._random.random() < 0.1:
                statements.append({"clear": name})
            return statements
        if 0.5 <= chance < 0.6 and (name := self._pick(names, *self._classes)):
            slots = self._classes[names[name]].get("slots", _ATTRIBUTES)
            count = min(len(slots), self._random.choice([1, 1, 1, 2, 3, 7, 40]))
            places = [f"{name}.{slot}" for slot in self._random.sample(slots, count)]
            values = {place: self._value(names, 2 if count < 4 else 0) for place in places}
            return [{"set": values}, self._bind(names, own, self._random.choice(places))]
        free = [name for name in own if name not in self._captured]
        if 0.6 <= chance < 0.68 and free and self._depth == 0:
            name = self._random.choice(free)
            own.remove(name)
            del names[name]
            return [{"drop": [name]}]
        if 0.68 <= chance < 0.86 and self._depth < 3:
            return self._loop(names)
        if 0.86 <= chance < 0.94:
            first, second = self._inner(names, 3), self._inner(names, 2)
            return [{"choose": self._random.random(), "do": first, "otherwise": second}]
        return [self._call(names, 1)] if self._parameters else []

    def _use_generator(self, names: Names, own: list[str]) -> list[Any]:
        name, statements = self._pick(names, "generator"), []
        if name is None or self._random.random() < 0.3:
            function = self._random.choice(sorted(self._generators))
            arguments = [self._value(names, 2) for _ in range(self._parameters[function])]
            statements = [self._bind(names, own, {"call": function, "with": arguments})]
            name = next(iter(statements[0]["bind"]))
        chance, following = self._random.random(), {"next": name, "default": self._value(names, 1)}
        if chance < 0.2:
            statements.append(following)
        if chance < 0.5:
            statements.append(self._bind(names, own, following))
        if names[name] != "generator":  # `following` replaced it
            return statements
        if chance > 0.9:
            statements.append({"close": name})
        if 0.4 < chance < 0.7 and self._depth < 3:
            item = self._new_name()
            statements.append({"each": name, "as": item, "do": self._inner(names, 3, **{item: "any"})})
        return statements

    def _never_completes(self, statements: list[Any]) -> bool:
        """Whether the last of these statements always returns, so that others after it would never be reached."""
        if not statements:
            return False
        last = statements[-1]
        if "try" in last:
            handled = [each["handle"] for each in last.get("handlers", [last] if "handle" in last else [])]
            ends = all(map(self._never_completes, [last["try"], *handled]))
            return ends or self._never_completes(last.get("finally", []))
        if "choose" in last or "if_key" in last:
            return self._never_completes(last["do"]) and self._never_completes(last.get("otherwise", []))
        return "return" in last or "raise" in last

    def _collection(self) -> Any:
        switch = self._random.choice(("disable", "enable", "enable", "freeze", "unfreeze"))
        return {"collect": self._random.randint(0, 2)} if _is_chosen(self._random, 0.6) else {"collector": switch}

    def _change_dict(self, names: Names, name: str) -> list[Any]:
        chance, key, value = self._random.random(), self._new_name(), self._new_name()
        statements: list[Any] = [{"bind": {key: self._key(names)}}]
        names[key] = "any"
        if chance < 0.5:
            statements.append({"store": self._value(names, 2), "into": name, "at": key})
            if chance < 0.1:
                statements.append({"bind": {value: {"first_key": name}}})
        found: list[Any] = [{"bind": {value: {"item": name, "at": key}}}]
        if chance > 0.3:
            found.append({"delete": name, "at": key})
        otherwise = [{"clear": name}] if self._random.random() < 0.1 else []
        return [*statements, {"if_key": key, "in": name, "do": found, "otherwise": otherwise}]

    def _change_set(self, names: Names, own: list[str]) -> list[Any]:
        name, statements = self._pick(names, "set"), []
        if name is None or self._random.random() < 0.2:
            statements = [self._bind(names, own, self._set(names))]
            name = next(iter(statements[0]["bind"]))
        key, index = self._new_name(), self._new_name()
        inner = {**names, index: "int"}
        body: list[Any] = [{"bind": {key: self._number(inner, 2)}}, {"add": key, "to": name}]
        if self._random.random() < 0.6:
            body.append({"discard": self._number(inner, 2), "from": name})
        if self._random.random() < 0.3:
            body.append({"if_key": self._number(inner, 1), "in": name, "do": [{"discard": key, "from": name}]})
        times = self._random.choice([1, 3, 10, 100] if self._depth == 0 else [1, 3])
        return [*statements, {"repeat": times, "as": index, "do": body}]

    def _bind(self, names: Names, own: list[str], value: Any) -> Any:
        free = [name for name in own if name not in self._captured]
        name = self._random.choice(free) if free and self._random.random() < 0.3 else self._new_name()
        names[name] = self._kind(value, names)
        if name not in own:
            own.append(name)
        return {"bind": {name: value}}

    def _inner(self, names: Names, longest: int, **more: str) -> list[Any]:
        self._depth += 1
        inner = {**names, **more}
        block = self._block(inner, self._random.randint(1, longest))
        completes = self._yields or not self._returns or self._never_completes(block)
        if self._random.random() < 0.05 and not completes:
            block.append({"return": self._value(inner, 1)})
        self._depth -= 1
        return block

    def _loop(self, names: Names) -> list[Any]:
        name, sequence = self._new_name(), self._pick(names, "tuple")
        if sequence and self._random.random() < 0.3:
            return [{"each": sequence, "as": name, "do": self._inner(names, 3, **{name: "any"})}]
        table = self._pick(names, "dict")
        if table and self._random.random() < 0.3:
            inner = {each: "any" if kind == "dict" else kind for each, kind in names.items()}
            return [{"each": table, "as": name, "do": self._inner(inner, 3, **{name: "any"})}]
        times = self._random.choice([0, 1, 2, 5, 20, 300] if self._depth == 0 else [0, 1, 3])
        return [{"repeat": times, "as": name, "do": self._inner(names, 4, **{name: "int"})}]


def dying_containers(times: int) -> dict[str, ObjectProgram]:
    """Returns programs whose containers lose their last reference while an instruction uses them, by form."""
    big = 1 << 40
    table = {"dict": [[{"sum": ["n", "n"]}, {"letters": 7}], [{"sum": ["n", 5]}, {"letters": 9}]]}
    numbers, items = {"set": [{"sum": ["n", "n"]}, {"sum": ["n", 5]}]}, {"call": "items"}
    last = {"call": "last", "with": ["p"]}

    def after(number: Any) -> Any:
        return {"call": "after", "with": ["p", number]}

    known, new = after("n"), after(77)
    forms: dict[str, tuple[Any, dict[str, Any]]] = {
        "item of a dict": (table, {"bind": {"x": {"item": "p.q", "at": known}}}),
        "delete": (table, {"delete": "p.q", "at": known}),
        "store at a known key": (table, {"store": {"letters": 99}, "into": "p.q", "at": known}),
        "store at a new key": (table, {"store": {"letters": 99}, "into": "p.q", "at": new}),
        "add a known element": (numbers, {"add": known, "to": "p.q"}),
        "add a new element": (numbers, {"add": new, "to": "p.q"}),
        "discard": (numbers, {"discard": known, "from": "p.q"}),
        "discard nothing": (numbers, {"discard": new, "from": "p.q"}),
        "item of a list": (items, {"bind": {"x": {"item": "p.q", "at": last}}}),
        "store in a list": (items, {"store": {"letters": 99}, "into": "p.q", "at": last}),
        "append": (items, {"append": known, "to": "p.q"}),
    }
    drop: dict[str, Any] = {"set": {"p.q": 0}}
    fill = {"repeat": 1100, "as": "i", "do": [{"append": {"sum": ["i", 5000]}, "to": "xs"}]}
    functions = {
        "after": {"parameters": ["p", "m"], "do": [drop, {"return": {"sum": ["m", big]}}]},
        "last": {"parameters": ["p"], "do": [drop, {"bind": {"m": 1050}}, {"return": {"sum": ["m", 2]}}]},
        "items": {"do": [{"bind": {"xs": {"list": []}}}, fill, {"return": "xs"}]},
    }
    found = {}
    for name, (made, use) in forms.items():
        loop = {"repeat": times, "as": "i", "do": [{"set": {"p.q": made}}, use]}
        main = [{"bind": {"p": {"new": "K"}, "n": big}}, loop]
        document = {"classes": {"K": {"slots": ["q"]}}, "functions": functions, "main": main}
        found[name] = object_program(document)
    return found


# What programs do

NODE = {"Node": {"slots": ["value", "next"]}}


def events(release, *main, functions=None, classes=NODE):
    """The events of a program as (op, domain, size, block)."""
    program = object_program({"classes": classes, "functions": functions or {}, "main": list(main)})
    found, _ = simulate(program, release)
    return [(Op(op), Domain(domain), size, block) for op, domain, size, block in found.tolist()]


def references(machine):
    """The number of references that remain, and of those that the remaining objects have to each other."""
    heap = machine.heap
    objects = heap.objects[: heap.counts[0].objects]
    live = np.flatnonzero((objects["kind"] > 0) & (objects["kind"] != Kind.KEYS) & (objects["refs"] < IMMORTAL // 2))
    found = np.zeros(len(objects), np.int64)
    for entry in objects[live]:
        length = entry["length"]
        if entry["kind"] == Kind.SET:
            length = entry["capacity"]
        if entry["kind"] == Kind.DICT:  # keys and values, or values with shared keys
            length = objects[entry["owner"]]["length"] << (entry["vector"] == 0)
        np.add.at(found, heap.items[entry["first"] : entry["first"] + length] if entry["first"] else [], 1)
        if entry["kind"] in WITH_OWNER:
            found[entry["owner"]] += 1
        if entry["kind"] == Kind.GENERATOR and entry["owner"]:  # its frame, up to 3.10
            found[entry["owner"]] += 1
    return objects["refs"][live].tolist(), found[live].tolist()
