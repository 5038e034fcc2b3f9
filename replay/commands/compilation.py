"""Says on standard error when a command has to wait for the compiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from replay.naming import say


@dataclass
class Compilation:
    """Whether anything was compiled so far."""

    happened: bool = False


@contextmanager
def told_compilation(meanwhile: Callable[[], None] | None = None) -> Iterator[Compilation]:
    """Tells once, as soon as something is compiled in this block; `meanwhile` is begun then."""
    from replay.compiled import announced_compilation

    compilation = Compilation()

    def tell() -> None:
        compilation.happened = True
        say("compiling for the first time, which is kept for the next …", err=True)
        if meanwhile:
            meanwhile()

    with announced_compilation(tell):
        yield compilation
