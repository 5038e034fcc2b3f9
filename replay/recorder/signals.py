"""Blocks signals in `replay record` and forwards them to the recorded program."""

import os
import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT, signal.SIGWINCH,
}  # fmt: skip
_FROM_KERNEL = 0x80
"""si_code of signals from the terminal. It sends them to all foreground processes, so the program gets them too."""


@contextmanager
def blocked_signals() -> Iterator[set[signal.Signals]]:
    """Blocks the signals FORWARDED in this thread and its later threads; yields the earlier mask. An exception restores
    it.

    Call this before any other thread exists, because a signal goes to any thread that does not block it.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield mask  # type: ignore[misc]
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise


def deliver_pending(mask: Collection[int]) -> None:
    """Handles pending signals as this process normally does, before the program exists to which they are forwarded."""
    if signal.sigpending() & FORWARDED:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)


def forward_signals(process: int) -> None:
    """Forwards signals of other processes to `process` from now on, in a thread."""

    def forward() -> None:
        while True:
            received = signal.sigwaitinfo(FORWARDED)
            if received.si_code != _FROM_KERNEL:
                os.kill(process, received.si_signo)

    threading.Thread(target=forward, daemon=True).start()
