"""Random object programs whose generators raise and handle exceptions, and are suspended in `try`."""

from typing import Any

from coroutine_programs import CoroutineAuthor
from exception_programs import RaisingAuthor
from generator_programs import GeneratorAuthor
from object_programs import Names, object_program

from replay.objects import ObjectProgram


def random_raising_generator_program(seed: int) -> ObjectProgram:
    """Returns a random program with many suspended generators, cycles through them, and frequent collections."""
    return object_program(_SuspendingAuthor(seed).document())


def random_raising_pipeline_program(seed: int) -> ObjectProgram:
    """Returns a random program with all kinds of statements, some in generator functions."""
    return object_program(_PipelineAuthor(seed).document())


def random_raising_coroutine_program(seed: int) -> ObjectProgram:
    """Returns a random program with coroutines that raise and handle exceptions."""
    return object_program(_CoroutineAuthor(seed).document())


def random_calling_coroutine_program(seed: int) -> ObjectProgram:
    """Returns a random program with coroutines, exceptions, methods and finalizers."""
    return object_program(_CallingAuthor(seed).document())


class _SuspendingAuthor(GeneratorAuthor):
    """Writes generators with `try`. All of `main` is in a `try`. What runs while a generator is closed neither yields
    nor raises another exception."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._handled: list[str | None] = []
        """The variable of each handler around the statements."""
        self._is_last = False
        """Whether the statements are in `finally`."""
        self._stops = False
        """Whether `next` can raise StopIteration: not in a generator, which it would leave."""

    def document(self) -> dict[str, Any]:
        document, choose = super().document(), self._random.choice
        loop, *rest = document["main"]
        keep = choose([{"bind": {"kept": "error"}}, {"bind": {"z": 0}}])
        handler = {"except": "Exception", "as": "error", "handle": [keep]}
        document["classes"]["E"] = {"base": "ValueError"}
        loop["do"] = [{"try": loop["do"], **handler}]
        return {**document, "main": [loop, *rest]}

    def _statement(
        self, names: list[str], generators: list[str], objects: list[str], depth: int, yields: bool
    ) -> list[Any]:
        chance = self._random.random()
        if chance < 0.22 and depth < 3:
            return [self._try(names, generators, objects, depth + 1, yields)]
        if chance < 0.32 and not self._is_last:
            return [{"choose": self._random.random() / 2, "do": [self._raise(names)]}]
        if chance < 0.36 and generators and self._stops:
            return [{"next": self._random.choice(generators)}]
        if chance < 0.4 and self._handled and self._handled[-1] and objects:
            return [{"set": {f"{self._random.choice(objects)}.p": self._handled[-1]}}]
        return super()._statement(names, generators, objects, depth, yields)

    def _raise(self, names: list[str]) -> Any:
        chance, choose = self._random.random(), self._random.choice
        if self._handled and chance < 0.3:
            return {"raise": choose([self._handled[-1], None])}
        cause = {"from": choose([None, {"new": "E", "with": []}])} if chance < 0.4 else {}
        values = [self._value(names)] * choose([0, 1])
        return {"raise": choose(["E", "ValueError", "KeyError"]), "with": values, **cause}

    def _try(self, names: list[str], generators: list[str], objects: list[str], depth: int, yields: bool) -> Any:
        chance, choose = self._random.random(), self._random.choice
        stops, self._stops = self._stops, self._stops or not yields
        form: dict[str, Any] = {"try": self._block(names, generators, objects, depth, yields, 3)}
        self._stops = stops
        if chance < 0.7:
            name = choose([self._new_name(), None])
            more = "GeneratorExit" if yields else "StopIteration"
            form["except"] = choose(["ValueError", "Exception", ["KeyError", "E"], more])
            exits = form["except"] == "GeneratorExit"
            was_last, self._is_last = self._is_last, self._is_last or exits
            self._handled.append(name)
            bound = [name] if name else []
            form["handle"] = self._block([*names, *bound], generators, objects, depth, yields and not exits, 3)
            self._handled.pop()
            self._is_last = was_last
            if exits:
                form["handle"].append({"raise": None})
            if name:
                form["as"] = name
        if chance > 0.5:
            was_last, self._is_last = self._is_last, True
            form["finally"] = self._block(names, generators, objects, depth, False, 3)
            self._is_last = was_last
        return form

    def _value(self, names: list[str], depth: int = 2) -> Any:
        if names and names[-1] in self._handled and self._random.random() < 0.3:
            return names[-1]
        return super()._value(names, depth)


class _PipelineAuthor(RaisingAuthor):
    """Writes programs whose functions are generator functions or not. `finally` does not yield."""

    _has_generators = True

    def _use_generator(self, names: Names, own: list[str]) -> list[Any]:
        return super()._use_generator(names, own) if self._is_safe else []

    def _without_return(self, names: Names) -> list[Any]:
        yields, self._yields = self._yields, False
        body = super()._without_return(names)
        self._yields = yields
        return body


class _CoroutineAuthor(_SuspendingAuthor, CoroutineAuthor):
    """Writes coroutines that others await in `try`. No exception leaves `main`."""

    def document(self) -> dict[str, Any]:
        document = super().document()
        document["main"] = [each for statement in document["main"] for each in _guarded(statement)]
        return document


def _guarded(statement: Any) -> list[Any]:
    """Returns a statement of `main` with a handler for what coroutines raise in it."""
    handler = {"except": "Exception", "handle": [{"bind": {"z": 0}}]}
    if "repeat" in statement:
        return [{**statement, "do": [{"try": statement["do"], **handler}]}]
    return [{"try": [statement], **handler}] if {"next", "each"} & {*statement} else [statement]


class _CallingAuthor(_CoroutineAuthor):
    """Writes methods, constructors and finalizers too, which generators and coroutines call."""

    def document(self) -> dict[str, Any]:
        document, choose = super().document(), self._random.choice
        result = choose(["x", {"list": ["x", "self"]}])
        touch = {"parameters": ["x"], "do": [{"set": {"self.q": "x"}}, {"return": result}]}
        init = {"do": [{"set": {"self.p": choose([1, {"letters": 9}])}}]}
        last = {"do": [{"bind": {"y": choose([{"letters": 40}, {"list": ["self"]}])}}]}
        for kind in document["classes"].values():
            if "base" not in kind:
                more = {**choose([{}, {"__init__": init}]), **choose([{}, {"__del__": last}])}
                kind["methods"] = {"touch": touch, **more}
        return document

    def _statement(
        self, names: list[str], generators: list[str], objects: list[str], depth: int, yields: bool
    ) -> list[Any]:
        if objects and self._random.random() < 0.12:
            name, called = self._new_name(), f"{self._random.choice(objects)}.touch"
            value = self._value(names, 1)
            names.append(name)
            return [{"bind": {name: {"call": called, "with": [value]}}}]
        return super()._statement(names, generators, objects, depth, yields)
