"""Shows the progress of a command: only on a terminal, and only after one second."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE_S = 1.0


@contextmanager
def progress_bar(label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Yields a function to call with the amount done, and the total if it becomes known only then."""
    if not sys.stderr.isatty():
        yield lambda done, total=None: None
        return
    from rich.console import Console
    from rich.progress import Progress

    started_s = time.monotonic()
    with_bar = Progress(console=Console(stderr=True), transient=True)
    task = with_bar.add_task(label, total=total)

    def update(done: int, total: int | None = total) -> None:
        if time.monotonic() - started_s > _PATIENCE_S:
            with_bar.start()
        with_bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        with_bar.stop()
