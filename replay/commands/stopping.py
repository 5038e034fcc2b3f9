"""Signals that end a command, so that it removes its unfinished files first."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_UNTIL_RAISED_AGAIN = 0.1


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turns SIGINT, SIGTERM and SIGHUP in this block into exceptions, so that unfinished files are removed.

    CPython drops an exception that is raised in a destructor, in a callback of the import system or before a bare
    `except`. So the exception is raised again at short intervals until the block ends, unless some code handles it.
    """
    stop: BaseException | None = None

    def stop_now(number: int, _: object) -> None:
        nonlocal stop
        stop = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS_UNTIL_RAISED_AGAIN, _SECONDS_UNTIL_RAISED_AGAIN)
        raise stop

    def raise_again(*_: object) -> None:
        if stop is not None and not _is_handled(stop):
            raise stop

    def report(unraisable: "sys.UnraisableHookArgs") -> None:
        if unraisable.exc_value is None or unraisable.exc_value is not stop:
            sys.__unraisablehook__(unraisable)

    handlers: dict[int, Callable[..., None]] = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), stop_now)
    handlers[signal.SIGALRM] = raise_again
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:  # e.g. SIGHUP under nohup
            signal.signal(number, handler)
    sys.unraisablehook = report
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = sys.__unraisablehook__
        for number, earlier in before.items():
            signal.signal(number, earlier)
        if stop is not None:
            raise stop


def _is_handled(error: BaseException) -> bool:
    """Whether the interrupted code handles `error`, an exception that `error` caused, or the close of a generator."""
    waiting, seen = [sys.exception()], set()
    while waiting:
        handled = waiting.pop()
        if handled is error or isinstance(handled, GeneratorExit):
            return True
        if handled is not None and handled not in seen:
            seen.add(handled)
            waiting += [handled.__cause__, handled.__context__]
    return False
