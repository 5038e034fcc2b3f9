"""Blocks signals in `replay record` and forwards them to the recorded program, which gets each signal once.

A signal to the process group, e.g. from the terminal at Ctrl-C, reaches the program without help. A signal to this
process alone does not, and nothing in a signal tells which of both it is. So a witness is in the group, too.
"""

import os
import signal
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, NoReturn

FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGCONT, signal.SIGWINCH,
}  # fmt: skip


class Witness:
    """A child process that blocks FORWARDED: the signals that were sent to the group of this process are pending there.

    Linux sends a signal to the newest process of a group first, so the witness gets it before this process. The witness
    ends with this process.
    """

    def __init__(self) -> None:
        self._continued = False
        """Whether the group got a SIGCONT that `has_got` has not reported yet."""
        self._socket, theirs = socket.socketpair()
        self._process = os.fork()
        if self._process == 0:
            self._socket.close()
            _answer(theirs)
        theirs.close()

    def has_got(self, number: int) -> bool:
        """Whether the group got the signal `number` since the last call for it. False if the witness was killed."""
        try:
            self._continue()
            if number != signal.SIGCONT:
                return self._ask(number)
        except OSError:
            return False
        got, self._continued = self._continued, False
        return got

    def _continue(self) -> None:
        """Makes the witness able to answer, even if it was stopped together with its group."""
        status = Path(f"/proc/{self._process}/status").read_text()
        pending = int(status.partition("\nShdPnd:")[2].split()[0], 16)
        self._continued |= bool(pending >> signal.SIGCONT - 1 & 1)
        os.kill(self._process, signal.SIGCONT)
        self._ask(signal.SIGCONT)

    def _ask(self, number: int) -> bool:
        self._socket.send(bytes([number]))
        return self._socket.recv(1) == b"\1"


def _answer(questions: socket.socket) -> NoReturn:
    """Answers in the witness whether a signal is pending, and accepts it, until the other side is closed."""
    try:
        while question := questions.recv(1):
            pending = signal.sigtimedwait(question, 0)
            questions.send(bytes([pending is not None]))
    finally:
        os._exit(0)


class Blocked(NamedTuple):
    """Signals are blocked in this process."""

    mask: Collection[signal.Signals]
    """The signal mask before, which is the program's."""
    witness: Witness


@contextmanager
def blocked_signals() -> Iterator[Blocked]:
    """Blocks the signals FORWARDED in this thread and its later threads. An exception restores the earlier mask.

    Call this before any other thread exists, because a signal goes to any thread that does not block it.
    """
    mask: Collection[signal.Signals] = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # type: ignore[assignment]
    try:
        yield Blocked(mask, Witness())
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise


def deliver_pending(mask: Collection[int]) -> None:
    """Handles pending signals as this process normally does, before the program exists to which they are forwarded."""
    if signal.sigpending() & FORWARDED:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)


def forward_signals(process: int, witness: Witness) -> None:
    """Forwards signals that only this process gets to `process` from now on, in a thread."""

    def forward() -> None:
        while True:
            number = signal.sigwaitinfo(FORWARDED).si_signo
            if not witness.has_got(number):
                os.kill(process, number)
                continue
            while signal.sigtimedwait({number}, 0):  # came meanwhile, and may be merged with the first in the witness
                witness.has_got(number)

    threading.Thread(target=forward, daemon=True).start()
