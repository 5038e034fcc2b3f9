"""Random object programs that raise and handle exceptions. No exception leaves `main`."""

from typing import Any

from object_programs import Names, RandomAuthor, kept, object_program

from replay.objects import ObjectProgram
from replay.objects.language import EXCEPTIONS

_CLASSES = [name for name in EXCEPTIONS if name not in ("GeneratorExit", "StopIteration")]


@kept
def raising_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed."""
    return object_program(raising_document(seed))


def raising_document(seed: int) -> dict[str, Any]:
    """Returns the document of a random program."""
    return RaisingAuthor(seed).document()


@kept
def calling_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed that also has inner functions, methods and constructors."""
    return object_program(calling_document(seed))


def calling_document(seed: int) -> dict[str, Any]:
    """Returns the document of a random program that also has inner functions, methods and constructors."""
    return CallingAuthor(seed).document()


class RaisingAuthor(RandomAuthor):
    """Writes functions that raise exceptions; `main` calls them in `try` only."""

    has_callables = False

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._own: list[str] = []
        for index in range(self._random.choice([0, 1, 1, 2, 3])):
            base = self._random.choice([*self._own, *_CLASSES] if index else _CLASSES)
            self._classes[f"E{index}"] = {"base": base}
            self._own.append(f"E{index}")
        self._functions = self._parameters
        self._is_safe = True
        self._handles = False
        """Whether the statements are in a handler."""

    def _main(self) -> list[Any]:
        self._is_safe, self._parameters = False, {}
        return self._block({}, self._random.randint(4, 14))

    def _statement(self, names: Names, own: list[str]) -> list[Any]:
        chance = self._random.random()
        if chance < (0.15 if self._is_safe else 0.4) and self._depth < 3:
            return [self._try(names)]
        if chance > 0.9 and self._is_safe:
            return [{"choose": self._random.random(), "do": [self._raise(names)]}]
        return super()._statement(names, own)

    def _collection(self) -> Any:
        """Returns no `unfreeze`: the real interpreter has more objects to unfreeze than the model."""
        while "unfreeze" in (statement := super()._collection()).values():
            pass
        return statement

    def _raise(self, names: Names) -> Any:
        chance, known = self._random.random(), self._pick(names, "exception", *self._own)
        cause = {}
        if self._random.random() < 0.2:
            cause = {"from": self._pick(names, "exception", *self._own)}
        if known and chance < 0.3:
            return {"raise": known, **cause}
        if chance < 0.4 and self._handles:
            return {"raise": None}
        name = self._random.choice([*_CLASSES, *2 * [own for own in self._own if own in self._ready]])
        if chance < 0.5 and name not in self._inits:
            return {"raise": name, **cause}
        return {"raise": name, "with": self._arguments(names, name), **cause}

    def _arguments(self, names: Names, name: str) -> list[Any]:
        """Returns arguments of a new exception."""
        count = self._inits.get(name, self._random.choice([0, 1, 1, 2, 3]))
        return [self._value(names, 2) for _ in range(count)]

    def _new(self, names: Names, depth: int) -> Any:
        new = super()._new(names, depth)
        if new.get("new") in self._own and new["new"] not in self._inits and depth > 0:
            new["with"] = self._arguments(names, new["new"])
        return new

    def _try(self, names: Names) -> Any:
        was_safe = self._is_safe
        self._is_safe, self._parameters = True, self._functions
        body = self._inner(names, 4)
        if self._random.random() < 0.3 and not self._never_completes(body):
            body.append(self._raise(names))
        self._is_safe, self._parameters = was_safe, self._functions if was_safe else {}
        form: dict[str, Any] = {"try": body}
        if not was_safe or self._random.random() < 0.8:
            count = self._random.choice([1, 1, 1, 2, 3])
            clauses = [self._handler(names, was_safe, was_safe or index < count - 1) for index in range(count)]
            form |= clauses[0] if count == 1 else {"handlers": clauses}
        if len(form) == 1 or self._random.random() < 0.25:
            form["finally"] = self._without_return(names)
        return form

    def _handler(self, names: Names, was_safe: bool, is_partial: bool) -> dict[str, Any]:
        """Returns an `except`; one that is not partial is for all exceptions."""
        form: dict[str, Any] = {"except": self._classes_to_catch(is_partial)}
        more = {}
        if self._random.random() < 0.6:
            form["as"] = self._new_name()
            more = {form["as"]: "exception"}
        handles, self._handles = self._handles, True
        form["handle"] = self._inner(names, 3, **more)
        if was_safe and self._random.random() < 0.2 and not self._never_completes(form["handle"]):
            form["handle"].append(self._raise({**names, **more}))
        self._handles = handles
        return form

    def _body(self, names: Names, parameters: list[str]) -> list[Any]:
        handles, self._handles = self._handles, False
        body = super()._body(names, parameters)
        self._handles = handles
        return body

    def _classes_to_catch(self, is_partial: bool) -> Any:
        if not is_partial and self._random.random() < 0.5:
            return "Exception"
        found = self._random.sample([*_CLASSES, *self._own], self._random.randint(1, 3))
        if not is_partial:
            found = list(dict.fromkeys([*found, "Exception"]))
        return found if len(found) > 1 or self._random.random() < 0.5 else found[0]

    def _without_return(self, names: Names) -> list[Any]:
        while True:
            body = self._inner(names, 2)
            if "return" not in str(body):
                return body


class CallingAuthor(RaisingAuthor):
    """Writes functions in functions, methods and constructors too. All of `main` is in a `try`."""

    has_callables = True

    def _write_methods(self, name: str) -> None:
        super()._write_methods(name)
        if (base := self._classes[name].get("base")) in self._own:
            self._methods[name] = {**self._methods[base], **self._methods[name]}
            if base in self._inits:
                self._inits.setdefault(name, self._inits[base])

    def _main(self) -> list[Any]:
        bodies = [self._block({}, self._random.randint(3, 8)) for _ in range(self._random.randint(1, 3))]
        self._parameters = {}
        handlers = [{"except": "Exception", "as": f"e{index}", "handle": [{"bind": {"z": 0}}]} for index in range(3)]
        return [{"try": body, **handler} for body, handler in zip(bodies, handlers, strict=False)]
