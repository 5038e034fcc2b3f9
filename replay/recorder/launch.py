"""Runs a program under the recorder: this process writes, the program is its child and runs as it would by itself.

The child is started with the command line it would have had without us. What sets the hooks comes in by PYTHONPATH: a
`sitecustomize` in a passing folder, which the interpreter imports before the program's first line. It takes itself out
of the environment and of sys.path, and makes room for the `sitecustomize` there may be.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from replay.recorder import tap
from replay.recorder.ring import Ring, make_memory_file

_FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT,
    signal.SIGWINCH, signal.SIGALRM,
}  # fmt: skip
_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""What this interpreter ignores and a program must not find ignored."""
_SENT_BY_KERNEL = 0x80

_SITECUSTOMIZE = """\
import _replay_tap, sys
_replay_tap.enter({folder!r}, {python_path!r}, {file}, {writer}, {drain_pool_bytes})
del sys.modules["sitecustomize"]
import sitecustomize
"""


class Child:
    """A program that was started; its ring fills from its first line on."""

    def __init__(self, command: Sequence[str], ring_file: int, drain_pool_bytes: int) -> None:
        self._folder = tempfile.mkdtemp(prefix="replay-record-")
        self._status: int | None = None
        before = os.environ.get("PYTHONPATH")
        path = Path(self._folder)
        shutil.copy(tap.__file__, path / "_replay_tap.py")
        (path / "sitecustomize.py").write_text(
            _SITECUSTOMIZE.format(
                folder=self._folder, python_path=before, file=ring_file, writer=os.getpid(),
                drain_pool_bytes=drain_pool_bytes,
            )
        )  # fmt: skip
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (self._folder, before)))}
        os.set_inheritable(ring_file, True)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
        arguments = [sys.executable, *command]
        self.pid = os.posix_spawn(sys.executable, arguments, environment, setsigmask=self._mask, setsigdef=_BY_PYTHON)
        threading.Thread(target=self._forward, daemon=True).start()

    def over(self) -> bool:
        """Whether the program has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
                shutil.rmtree(self._folder, ignore_errors=True)
        return self._status is not None

    @property
    def exit_code(self) -> int:
        """As subprocess has it: below zero for a signal."""
        return os.waitstatus_to_exitcode(self._status)

    def _forward(self) -> None:
        """Passes signals on to the program, but for those of the terminal, which it gets itself."""
        while True:
            received = signal.sigwaitinfo(_FORWARDED)
            if received.si_code != _SENT_BY_KERNEL:
                os.kill(self.pid, received.si_signo)


def die_alike(exit_code: int) -> None:
    """Ends this process as the program ended."""
    if exit_code < 0:
        import resource

        number = -exit_code
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    sys.exit(exit_code)
