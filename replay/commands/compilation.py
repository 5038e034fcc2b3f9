"""Says on standard error when a command has to wait for the compiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from replay.support.names import say


@dataclass
class Compilation:
    """Whether anything was compiled so far."""

    happened: bool = False


@contextmanager
def told_compilation(meanwhile: Callable[[], None] | None = None) -> Iterator[Compilation]:
    """Tells once, as soon as something is compiled in this block; `meanwhile` is begun then."""
    from replay.jit.compiling import announced_compilation

    compilation = Compilation()

    def tell(obstacle: str) -> None:
        compilation.happened = True
        if obstacle:
            advice = "set REPLAY_CACHE_DIR to a writable folder"
            kept = f"on every run, for the result cannot be kept: {obstacle}; {advice}"
        else:
            kept = "first run only; cached"
        say(f"compiling ({kept}) …", err=True)
        if meanwhile:
            meanwhile()

    with announced_compilation(tell):
        yield compilation
