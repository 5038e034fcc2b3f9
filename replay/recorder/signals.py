"""Signals of a process that stands in for another: they are kept from ending it, and passed on."""

import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

HELD = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT, signal.SIGWINCH,
}  # fmt: skip
_FROM_KERNEL = 0x80
"""si_code of what a terminal sends: to all processes in its foreground, so to the other one too."""


@contextmanager
def held_signals() -> Iterator[set[signal.Signals]]:
    """Blocks them in this thread and all that it starts; yields the earlier mask, which an exception brings back.

    To be entered before any other thread exists, because a signal goes to any thread that does not block it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield mask  # type: ignore[misc]
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise


def act_on_held(mask: Collection[int]) -> None:
    """Lets those that came in the meantime do what they do, before there is anybody to pass them on to."""
    if signal.sigpending() & HELD:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def forward_signals(process: int) -> None:
    """Passes on from now what others send to this process."""

    def forward() -> None:
        while True:
            received = signal.sigwaitinfo(HELD)
            if received.si_code != _FROM_KERNEL:
                os.kill(process, received.si_signo)

    threading.Thread(target=forward, daemon=True).start()
