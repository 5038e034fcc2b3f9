"""Reports on standard error that a command waits for the compiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from replay.support.names import say


@dataclass
class Compilation:
    """Whether kernels were compiled."""

    happened: bool = False


@contextmanager
def report_compilation(meanwhile: Callable[[], None] | None = None) -> Iterator[Compilation]:
    """Prints a line before the first kernel is compiled in this block, and then calls `meanwhile`."""
    from replay.jit.compiling import announced_compilation

    compilation = Compilation()

    def report(obstacle: str) -> None:
        compilation.happened = True
        if obstacle:
            advice = "set REPLAY_CACHE_DIR to a writable folder"
            frequency = f"on every run, because the result cannot be cached: {obstacle}; {advice}"
        else:
            frequency = "first run only; cached"
        say(f"compiling ({frequency}) …", err=True)
        if meanwhile:
            meanwhile()

    with announced_compilation(report):
        yield compilation
