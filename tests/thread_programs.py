"""Random object programs with threads whose order does not depend on the operating system.

At any moment at most one thread waits for the GIL: threads take turns, by locks or by queues.
"""

from typing import Any

from exception_programs import CallingAuthor, RaisingAuthor
from object_programs import Names, RandomAuthor, kept, object_program

from replay.objects import ObjectProgram


@kept
def random_thread_program(seed: int) -> ObjectProgram:
    """Returns the random program with threads of a seed."""
    return object_program(ThreadAuthor(seed).document())


@kept
def raising_thread_program(seed: int) -> ObjectProgram:
    """Returns the random program of a seed whose threads raise exceptions, too."""
    return object_program(raising_thread_document(seed))


def raising_thread_document(seed: int) -> dict[str, Any]:
    """Returns the document of a random program whose threads raise exceptions, too."""
    return _RaisingThreadAuthor(seed).document()


def _remove_returns(body: list[Any]) -> None:
    """Removes `return` from statements: who returns early leaves the others waiting."""
    for statement in body:
        for inner in ("do", "otherwise"):
            _remove_returns(statement.get(inner, []))
    body[:] = [statement for statement in body if "return" not in statement] or [{"bind": {"z": 0}}]


class ThreadAuthor(RandomAuthor):
    """Writes programs whose `main` hands turns to threads, some of which do the same."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._made: list[tuple[bool, int]] = []

    def document(self) -> dict[str, Any]:
        document = super().document()
        functions, main = document["functions"], document["main"]
        names: Names = {}
        places = [self._random.randint(0, len(main)) for _ in range(self._random.randint(1, 3))]
        for index, place in enumerate(sorted(places, reverse=True)):
            by_queue, turns = self._random.random() < 0.5, self._random.choice([1, 2, 5])
            functions[f"w{index}"] = self._worker(by_queue, turns, index)
            main[place:place] = self._turns(f"w{index}", by_queue, turns, names)
            _remove_returns(functions[f"w{index}"]["do"])
        _remove_returns(main)
        return document

    def _worker(self, by_queue: bool, turns: int, index: int) -> dict[str, Any]:
        names: Names = {"inbox": "any", "outbox": "any", "value": "any"}
        statements = self._block(names, 2)
        if index and self._random.random() < 0.3:
            statements += self._turns(f"w{index - 1}", *self._made[index - 1], names)
        statements += self._signal("outbox", by_queue, names)
        inner: Names = {**names, "i": "int"}
        self._depth += 1
        turn = [*self._wait("inbox", by_queue, inner), *self._block(inner, 3), *self._signal("outbox", by_queue, inner)]
        self._depth -= 1
        self._made.append((by_queue, turns))
        body = [*statements, {"repeat": turns, "as": "i", "do": turn}, *self._block(names, 2)]
        return {"parameters": ["inbox", "outbox", "value"], "do": body}

    def _turns(self, worker: str, by_queue: bool, turns: int, names: Names) -> list[Any]:
        """Returns statements that start a thread, and give it its turns."""
        inbox, outbox, index = self._new_name(), self._new_name(), self._new_name()
        made = {"queue": []} if by_queue else {"lock": []}
        statements: list[Any] = [{"bind": {inbox: made, outbox: made}}]
        if not by_queue:
            statements += [{"acquire": inbox}, {"acquire": outbox}]
        own: Names = {}
        statements.append({"start": worker, "with": [inbox, outbox, self._value({}, 2)]})
        statements += [*self._block(own, 1), *self._wait(outbox, by_queue, own)]
        self._depth += 1
        inner = {**own, index: "int"}
        turn = [*self._block(inner, 1), *self._signal(inbox, by_queue, inner), *self._block(inner, 2)]
        turn += self._wait(outbox, by_queue, inner)
        self._depth -= 1
        return [*statements, {"repeat": turns, "as": index, "do": turn}]

    def _collection(self) -> Any:
        found = super()._collection()  # the model does not have the older objects that `unfreeze` returns
        return {"collect": 2} if found == {"collector": "unfreeze"} else found

    def _signal(self, name: str, by_queue: bool, names: Names) -> list[Any]:
        return [{"put": self._value(names, 2), "to": name} if by_queue else {"release": name}]

    def _wait(self, name: str, by_queue: bool, names: Names) -> list[Any]:
        if not by_queue:
            return [{"acquire": name}]
        got = self._new_name()
        names[got] = "any"
        return [{"bind": {got: {"take": name}}}]

    def _statement(self, names: Names, own: list[str]) -> list[Any]:
        if self._random.random() > 0.1:
            return super()._statement(names, own)
        name, got, index = self._new_name(), self._new_name(), self._new_name()
        if self._random.random() < 0.3:
            own.append(name)
            names[name] = "any"
            return [{"bind": {name: {"lock": []}}}, {"acquire": name}, {"release": name}]
        puts = self._random.choice([0, 1, 2, 9, 17, 40, 100] if self._depth == 0 else [0, 1, 5])
        takes = self._random.randint(0, puts)
        own.append(name)
        inner: Names = {**names, index: "int"}
        put = {"put": self._value({**inner, name: "any"}, 1), "to": name}
        statements: list[Any] = [{"bind": {name: {"queue": []}}}, {"repeat": puts, "as": index, "do": [put]}]
        names[name] = "any"
        return [*statements, {"repeat": takes, "as": index, "do": [{"bind": {got: {"take": name}}}]}]


class _RaisingThreadAuthor(ThreadAuthor, CallingAuthor):
    """Writes threads that raise exceptions and call functions and methods, in `try` only. No thread ends early."""

    @property
    def has_callables(self) -> bool:  # type: ignore[override]
        return self._is_safe

    def _main(self) -> list[Any]:
        self._returns = False
        return RaisingAuthor._main(self)

    def _new(self, names: Names, depth: int) -> Any:
        ready = self._ready
        if not self._is_safe:  # a constructor may raise exceptions
            self._ready = [name for name in ready if name not in self._inits]
        new = super()._new(names, depth)
        self._ready = ready
        return new
