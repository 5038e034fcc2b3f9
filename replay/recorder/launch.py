"""Runs a program under the recorder: this process writes, the program is its child and runs as it would by itself.

The child is started with the command line it would have had without us. What sets the hooks comes in by PYTHONPATH: a
`sitecustomize` in a passing folder, which the interpreter imports before the program's first line. It takes itself out
of the environment and of sys.path, and makes room for the `sitecustomize` there may be.
"""

import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from replay.recorder import detach, sites, tap
from replay.recorder.signals import act_on_held, forward_signals
from replay.trace import TEARDOWN_MARK

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""By this interpreter, which a program must not inherit."""
_TAP, _DETACH, _SITES = "_replay_tap", "_replay_detach", "_replay_sites"
"""What `tap`, `detach` and `sites` are called in the program, where their package need not be installed."""
_PACKAGE_HOME = str(Path(__file__).parents[2])
_SITECUSTOMIZE = """\
import sys
modules = {{*sys.modules, "_replay_tap"}}
import _replay_tap
{imports}{follow}_replay_tap.enter(
    {folder!r}, {python_path!r}, {file}, {writer}, {drain_pool_bytes}, {sites}, end_mark={end_mark!r}, modules=modules
)
del sys.modules["sitecustomize"]
import sitecustomize
"""
_FOLLOW = """\
import _replay_detach
_replay_detach.follow_forks(_replay_tap, {sites}, {home!r}, {path!r}, {wishes!r})
"""


class Follow(NamedTuple):
    """How forked children are recorded: into files named after `path` and their process."""

    path: str
    wishes: "detach.Wishes"


class Child:
    """A program that was started, and records into the ring of that memory file from its first line on.

    The caller has held back its signals, and `mask` is what the program has instead. `follow` has its forked children
    recorded as well; `python` is the interpreter, of whatever version, if it is not the one that runs this. With
    `with_sites`, the hooks in that memory tell call sites.
    """

    def __init__(
        self,
        command: Sequence[str],
        ring_file: int,
        mask: Collection[signal.Signals],
        drain_pool_bytes: int = 0,
        follow: "Follow | None" = None,
        python: str = sys.executable,
        with_sites: bool = False,
    ) -> None:
        self._status: int | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="replay-record-"))
        environment = os.environ | {"PYTHONPATH": self._prepare(ring_file, drain_pool_bytes, follow, with_sites)}
        os.set_inheritable(ring_file, True)
        act_on_held(mask)
        arguments = [python, *command]
        self.pid = os.posix_spawn(
            python, arguments, environment, setsigmask=mask, setsigdef=_IGNORED_BY_PYTHON
        )  # fmt: skip
        forward_signals(self.pid)

    def over(self) -> bool:
        """Whether the program has ended."""
        if self._status is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            if process:
                self._status = status
                shutil.rmtree(self._folder, ignore_errors=True)
        return self._status is not None

    def end_alike(self) -> None:
        """Ends this process as the program ended, which is over: by the same exit code or signal."""
        status = self._status or 0
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if number != signal.SIGKILL:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            os.kill(os.getpid(), number)
        sys.exit(os.waitstatus_to_exitcode(status))

    def _prepare(self, ring_file: int, drain_pool_bytes: int, follow: "Follow | None", with_sites: bool) -> str:
        """Fills the folder; returns the PYTHONPATH by which the program finds it."""
        before = os.environ.get("PYTHONPATH")
        shutil.copy(tap.__file__, self._folder / f"{_TAP}.py")
        if follow is not None:
            shutil.copy(detach.__file__, self._folder / f"{_DETACH}.py")
        if with_sites:
            shutil.copy(sites.__file__, self._folder / f"{_SITES}.py")
        module = _SITES if with_sites else "None"
        hook = _SITECUSTOMIZE.format(
            imports=f"import {_SITES}\n" if with_sites else "",
            follow=_FOLLOW.format(home=_PACKAGE_HOME, sites=module, **follow._asdict()) if follow else "",
            sites=module,
            folder=str(self._folder),
            python_path=before,
            file=ring_file,
            writer=os.getpid(),
            drain_pool_bytes=drain_pool_bytes,
            end_mark=TEARDOWN_MARK,
        )
        (self._folder / "sitecustomize.py").write_text(hook)
        return os.pathsep.join(filter(None, (str(self._folder), before)))
