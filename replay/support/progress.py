"""Shows how far a long command has come: on a terminal only, and only once it has taken a second."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE_S = 1.0


@contextmanager
def progress_bar(what: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Gives a function to call with what is done so far, out of `total` where that is known, then or later."""
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import Progress

    started_s = time.monotonic()
    with_bar = Progress(console=Console(stderr=True), transient=True)
    task = with_bar.add_task(what, total=total)

    def update(done: int, total: int | None = total) -> None:
        if time.monotonic() - started_s > _PATIENCE_S:
            with_bar.start()
        with_bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        with_bar.stop()
