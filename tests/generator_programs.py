"""Random object programs with many suspended generators, cycles through them, and frequent collections."""

import random
from typing import Any

from object_programs import Names, RandomAuthor, kept, object_program

from replay.objects import ObjectProgram


@kept
def random_generator_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed."""
    return object_program(GeneratorAuthor(seed).document())


@kept
def random_pipeline_program(seed: int) -> ObjectProgram:
    """Returns a random program with all kinds of statements, some in generator functions."""
    return object_program(_PipelineAuthor(seed).document())


@kept
def random_calling_program(seed: int) -> ObjectProgram:
    """Returns a random program with all kinds of statements, some in generator functions, others in methods."""
    return object_program(_CallingAuthor(seed).document())


class _PipelineAuthor(RandomAuthor):
    """Writes programs whose functions are generator functions or not."""

    _has_generators = True
    has_callables = False

    def _collection(self) -> Any:
        """Returns no `unfreeze`: the real interpreter has more objects to unfreeze than the model."""
        while "unfreeze" in (statement := super()._collection()).values():
            pass
        return statement


class _CallingAuthor(_PipelineAuthor):
    """Writes inner functions, methods and constructors too. Generator functions have no functions in them."""

    has_callables = True

    def _define(self, names: Names, own: list[str]) -> list[Any]:
        return [] if self._yields else super()._define(names, own)

    def _use_method(self, names: Names, instance: str, method: str) -> list[Any]:
        found = super()._use_method(names, instance, method)
        return [] if self._yields and "define" in str(found) else found

    def _end_in_call(self) -> list[Any]:
        return [] if self._yields else super()._end_in_call()


class GeneratorAuthor:
    """Writes programs whose functions are mostly generator functions."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._names = 0
        self._generators: list[str] = []
        self._functions: list[str] = []

    def document(self) -> dict[str, Any]:
        functions = {}
        for index in range(self._random.randint(1, 3)):
            body = self._block(["a", "b"], [], [], 0, True, self._random.randint(2, 7))
            functions[f"g{index}"] = {"parameters": ["a", "b"], "do": [*body, {"yield": 1}]}
            self._generators.append(f"g{index}")
            if self._random.random() < 0.5:
                functions[f"f{index}"] = {"parameters": ["a"], "do": self._block(["a"], [], [], 0, False, 4)}
                self._functions.append(f"f{index}")
        body = self._block([], [], [], 0, False, self._random.randint(4, 14))
        main = [{"repeat": self._random.choice([1, 3, 12]), "as": "i", "do": body}, {"collect": 2}]
        classes = {"K": {}, "S": {"slots": ["p", "q"]}}
        choose = self._random.choice
        thresholds = [choose([1, 2, 3, 7, 20]), choose([0, 1, 3]), choose([0, 1, 4])]
        return {"classes": classes, "functions": functions, "main": main, "collector": {"thresholds": thresholds}}

    def _new_name(self) -> str:
        self._names += 1
        return f"x{self._names}"

    def _value(self, names: list[str], depth: int = 2) -> Any:
        chance, choose = self._random.random(), self._random.choice
        if names and chance < 0.45:
            return choose(names)
        if chance < 0.6 and depth:
            items = [self._value(names, depth - 1) for _ in range(self._random.randint(0, 3))]
            return {choose(["list", "tuple"]): items}
        if chance < 0.7:
            return {"new": choose(["K", "S"])}
        if chance < 0.75 and depth:
            return {"dict": [[choose([1, 1000, {"letters": 3}]), self._value(names, depth - 1)]]}
        if chance < 0.8 and depth and self._generators:
            return self._generator(names, depth - 1)
        return {"letters": choose([1, 5, 30])} if chance < 0.9 else choose([1, 2000])

    def _generator(self, names: list[str], depth: int) -> Any:
        arguments = [self._value(names, depth), self._value(names, depth)]
        return {"call": self._random.choice(self._generators), "with": arguments}

    def _block(
        self, names: list[str], generators: list[str], objects: list[str], depth: int, yields: bool, length: int
    ) -> list[Any]:
        """Returns statements. The lists are of bound names: all, those of generators, those of instances."""
        names, generators, objects, found = [*names], [*generators], [*objects], []
        for _ in range(length):
            if yields and self._random.random() < 0.3:
                found += self._suspend(names, generators)
            else:
                found += self._statement(names, generators, objects, depth, yields)
        return found or [{"bind": {"z": 1}}]

    def _suspend(self, names: list[str], _generators: list[str]) -> list[Any]:
        """Returns the statements with which a generator is suspended."""
        return [{"yield": self._value(names)}]

    def _statement(
        self, names: list[str], generators: list[str], objects: list[str], depth: int, yields: bool
    ) -> list[Any]:
        chance, choose, name = self._random.random(), self._random.choice, self._new_name()
        lists = names, generators, objects
        if chance < 0.15:
            names.append(name)
            objects.append(name)
            return [{"bind": {name: {"new": choose(["K", "S"])}}}]
        if chance < 0.35 and objects:
            return [{"set": {f"{choose(objects)}.{choose('pq')}": self._value(names)}}]
        if chance < 0.5 and self._generators:
            found: list[Any] = [{"bind": {name: self._generator(names, 2)}}]
            if objects and self._random.random() < 0.5:
                found.append({"set": {f"{choose(objects)}.{choose('pq')}": name}})
            names.append(name)
            generators.append(name)
            return found
        if chance < 0.7 and generators:
            return [{"next": choose(generators), "default": self._value(names, 1)}]
        if chance < 0.74 and generators:
            return [{"close": choose(generators)}]
        if chance < 0.8 and generators and depth < 2:
            body = self._block([*names, name], generators, objects, depth + 1, yields, 3)
            return [{"each": choose(generators), "as": name, "do": body}]
        if chance < 0.86 and depth < 2:
            body = self._block([*names, name], generators, objects, depth + 1, yields, 4)
            return [{"repeat": choose([1, 3, 10]), "as": name, "do": body}]
        if chance < 0.91:
            return [{"collect": self._random.randint(0, 2)}]
        if chance < 0.94 and len(names) > 3 and depth == 0:
            dropped = choose(names[2:])
            for each in lists:
                each[:] = [kept for kept in each if kept != dropped]
            return [{"drop": [dropped]}]
        if chance < 0.96:
            return [{"collector": choose(["disable", "enable", "enable", "freeze"])}]
        if self._functions:
            return [{"call": choose(self._functions), "with": [self._value(names)]}]
        return []
