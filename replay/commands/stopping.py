"""Signals that end a command, so that it removes its unfinished files first."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_UNTIL_RAISED_AGAIN = 0.1


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP leave this block as exceptions, so that unfinished files are removed.

    An exception that is raised in a destructor, a callback of the import system or before a bare `except` gets lost. So
    it is raised again at short intervals, unless some code handles it, until the block ends.
    """
    stop: BaseException | None = None

    def begin(number: int, _: object) -> None:
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

    handlers: dict[int, Callable[..., None]] = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), begin)
    handlers[signal.SIGALRM] = raise_again
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if before[number] is not signal.SIG_IGN:  # as under nohup
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
    """Whether the interrupted code cleans up: after `error` or one that it led to, or in a generator that is closed."""
    waiting, seen = [sys.exception()], set()
    while waiting:
        handled = waiting.pop()
        if handled is error or isinstance(handled, GeneratorExit):
            return True
        if handled is not None and handled not in seen:
            seen.add(handled)
            waiting += [handled.__cause__, handled.__context__]
    return False
