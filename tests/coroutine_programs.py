"""Random object programs with coroutines in flight, and with generators that delegate to others."""

from typing import Any

from generator_programs import GeneratorAuthor
from object_programs import kept, object_program

from replay.objects import ObjectProgram

DONE = 0
"""What `next` returns at the end of a coroutine in these programs; pauses yield other numbers."""


@kept
def random_delegation_program(seed: int) -> ObjectProgram:
    """Returns a random program with `yield from`."""
    return object_program(_DelegatingAuthor(seed).document())


@kept
def random_coroutine_program(seed: int) -> ObjectProgram:
    """Returns a random program with coroutines."""
    return object_program(CoroutineAuthor(seed).document())


class _DelegatingAuthor(GeneratorAuthor):
    """Writes programs whose generators delegate to others, to lists and to tuples."""

    def _suspend(self, names: list[str], generators: list[str]) -> list[Any]:
        chance = self._random.random()
        if generators and chance < 0.4:
            return [{"yield_from": self._random.choice(generators)}]
        if chance < 0.6 or (self._generators and chance < 0.75):
            name, kind = self._new_name(), self._random.choice(["list", "tuple"])
            made = {kind: [self._value(names, 1) for _ in range(self._random.randint(0, 3))]}
            bind: list[Any] = [{"bind": {name: made if chance < 0.6 else self._generator(names, 1)}}]
            names.append(name)
            return [*bind, {"yield_from": name}]
        return super()._suspend(names, generators)


class CoroutineAuthor(_DelegatingAuthor):
    """Writes programs that start coroutines, resume them in turn, and close or drop some before their end.

    Generator functions of the program can be awaited. Each coroutine is suspended at least once, and has ended as soon
    as `next` returns DONE.
    """

    _kind = "generator"
    """What is being written: a generator, a pause, which yields numbers only, or a coroutine."""

    def document(self) -> dict[str, Any]:
        document, choose = super().document(), self._random.choice
        functions: dict[str, Any] = document["functions"]
        self._pauses, self._coroutines = [], []
        for index in range(self._random.randint(1, 3)):
            functions[f"p{index}"] = self._function("pause", [{"yield": choose([1, 300, 5000])}])
            self._pauses.append(f"p{index}")
        for index in range(self._random.randint(1, 4)):
            self._kind, pause = "coroutine", self._await(["a", "b"])
            functions[f"c{index}"] = self._function("coroutine", pause, self._random.random() < 0.6)
            self._coroutines.append(f"c{index}")
        functions["task"] = self._function("coroutine", self._await(["a", "b"]))
        self._kind = "generator"
        document["main"] = [*document["main"], *self._flight(), {"collect": 2}]
        return document

    def _function(self, kind: str, first: list[Any], returns: bool = False) -> dict[str, Any]:
        self._kind = kind
        body = self._block(["a", "b"], [], [], 1, True, self._random.randint(1, 5))
        at = self._random.randint(0, len(body)) if kind == "pause" else len(body)
        body = [*body[:at], *first, *body[at:]]
        result = self._random.choice([1000, {"letters": 20}, {"list": [1, {"letters": 9}]}, {"dict": []}])
        return {"coroutine": True, "parameters": ["a", "b"], "do": [*body, *([{"return": result}] if returns else [])]}

    def _suspend(self, names: list[str], generators: list[str]) -> list[Any]:
        if self._kind == "generator":
            return super()._suspend(names, generators)
        return self._pause(names) if self._kind == "pause" else self._await(names)

    def _pause(self, names: list[str]) -> list[Any]:
        """Returns statements that suspend a generator that can be awaited."""
        chance, name, called = self._random.random(), self._new_name(), [*self._pauses, *self._coroutines]
        if chance < 0.2 or (chance < 0.5 and called):
            made = {"list": [1, 2000]} if chance < 0.2 else self._call(called, names)
            return [{"bind": {name: made}}, {"yield_from": name}]
        return [{"yield": self._random.choice([1, 300, 5000])}]

    def _await(self, names: list[str]) -> list[Any]:
        """Returns statements that suspend a coroutine."""
        called = self._call([*self._pauses * 3, *self._coroutines], names)
        if self._random.random() < 0.5:
            return [{"await": called}]
        name = self._new_name()
        if self._random.random() < 0.5:
            return [{"bind": {name: called}}, {"await": name}]
        names.append(name)
        return [{"bind": {name: {"await": called}}}]

    def _call(self, functions: list[str], names: list[str]) -> Any:
        return {"call": self._random.choice(functions), "with": [self._value(names, 1), self._value(names, 1)]}

    def _flight(self) -> list[Any]:
        """Returns statements that have several coroutines in flight."""
        choose, many = self._random.choice, self._random.choice([1, 5, 20])
        start: list[Any] = [
            {"bind": {"s": {"new": choose(["K", "S"])}}},
            {"bind": {"c": {"call": "task", "with": [choose(["s", 1, {"letters": 20}]), self._value([], 1)]}}},
            {"bind": {"w": {"steps": "c"}}},
            {"next": "w", "default": DONE},
            {"set": {"s.p": choose(["w", "c", "s"]), "s.q": choose(["w", "c", 0])}},
        ]
        resume = {"if_key": {"next": "w", "default": DONE}, "in": "done"}
        closed: list[Any] = [{"bind": {"c": {"item": "calls", "at": "i"}}}, {"close": "c"}] if choose([0, 1]) else []
        store: list[Any] = [
            {"store": "w", "into": "tasks", "at": "i"},
            {"store": "c", "into": "calls", "at": "i"},
        ]
        body: list[Any] = [
            {"bind": {"w": {"item": "tasks", "at": "i"}}},
            {"choose": choose([0.5, 0.9]), "do": [{**resume, "do": [*start, *store]}],
             "otherwise": [{"choose": choose([0.1, 0.9]), "do": [*closed, *start, *store]}]},
            *([{"collect": choose([0, 1, 2])}] if choose([0, 1]) and many < 20 else []),
        ]  # fmt: skip
        append: list[Any] = [{"append": "w", "to": "tasks"}, {"append": "c", "to": "calls"}]
        rest: list[Any] = [{"each": "w", "as": "x", "do": [{"bind": {"y": "x"}}]}]
        return [
            {"bind": {"tasks": {"list": []}, "calls": {"list": []}, "done": {"set": [DONE]}}},
            {"repeat": many, "as": "i", "do": [*start, *append]},
            {"repeat": choose([1, 3, 6]), "as": "k", "do": [{"repeat": many, "as": "i", "do": body}]},
            *(choose([0, 1]) * [*start, *rest]),
            *(choose([0, 1]) * [{"drop": ["calls"]}]),
            *(choose([0, 1]) * [{"each": "tasks", "as": "w", "do": [{**resume, "do": [{"bind": {"x": 0}}]}]}]),
        ]
