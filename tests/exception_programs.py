"""Random object programs that raise and handle exceptions. No exception leaves `main`."""

from typing import Any

from object_programs import Names, RandomAuthor, object_program

from replay.objects import ObjectProgram
from replay.objects.language import EXCEPTIONS


def raising_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed."""
    return object_program(raising_document(seed))


def raising_document(seed: int) -> dict[str, Any]:
    """Returns the document of a random program."""
    return _RaisingAuthor(seed).document()


class _RaisingAuthor(RandomAuthor):
    """Writes functions that raise exceptions; `main` calls them in `try` only."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._functions = self._parameters
        self._is_safe = True

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
        chance, known = self._random.random(), self._pick(names, "exception")
        if known and chance < 0.3:
            return {"raise": known}
        name = self._random.choice([*EXCEPTIONS])
        if chance < 0.5:
            return {"raise": None if known and chance < 0.4 else name}  # who knows an exception is in its handler
        count = self._random.choice([0, 1, 1, 2, 3])
        return {"raise": name, "with": [self._value(names, 2) for _ in range(count)]}

    def _try(self, names: Names) -> Any:
        was_safe = self._is_safe
        self._is_safe, self._parameters = True, self._functions
        body = self._inner(names, 4)
        if self._random.random() < 0.3 and not self._never_completes(body):
            body.append(self._raise(names))
        self._is_safe, self._parameters = was_safe, self._functions if was_safe else {}
        form: dict[str, Any] = {"try": body}
        if not was_safe or self._random.random() < 0.8:
            form["except"] = self._classes_to_catch(was_safe)
            more = {}
            if self._random.random() < 0.6:
                form["as"] = self._new_name()
                more = {form["as"]: "exception"}
            form["handle"] = self._inner(names, 3, **more)
            if was_safe and self._random.random() < 0.2 and not self._never_completes(form["handle"]):
                form["handle"].append(self._raise({**names, **more}))
        if "except" not in form or self._random.random() < 0.25:
            form["finally"] = self._without_return(names)
        return form

    def _classes_to_catch(self, was_safe: bool) -> Any:
        if not was_safe and self._random.random() < 0.5:
            return "Exception"
        found = self._random.sample([*EXCEPTIONS], self._random.randint(1, 3))
        if not was_safe:
            found = list(dict.fromkeys([*found, "Exception"]))
        return found if len(found) > 1 or self._random.random() < 0.5 else found[0]

    def _without_return(self, names: Names) -> list[Any]:
        while True:
            body = self._inner(names, 2)
            if "return" not in str(body):
                return body
