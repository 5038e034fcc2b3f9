"""Runs a program under the recorder: this process is the writer, and the program is its child.

The child has the command line that it would have without the recorder. PYTHONPATH contains a temporary folder with a
`sitecustomize`, which the interpreter imports before the program's first line and which installs the hooks. It removes
itself from the environment and from sys.path, and then imports the user's own `sitecustomize`, if there is one.
"""

import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from replay.recorder import detach, object_types, sites, tap
from replay.recorder.signals import Blocked, deliver_pending, forward_signals
from replay.trace import TEARDOWN_MARK

_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that this interpreter ignores. The program must not inherit that."""
_TAP, _DETACH, _SITES, _TYPES = "_replay_tap", "_replay_detach", "_replay_sites", "_replay_types"
"""Names of the modules `tap`, `detach`, `sites` and `object_types` in the program, which need not have replay."""
_PACKAGE_HOME = str(Path(__file__).parents[2])
_SITECUSTOMIZE = """\
import sys
modules = {{*sys.modules, "_replay_tap"}}
import _replay_tap
{imports}{follow}_replay_tap.enter(
    {folder!r}, {python_path!r}, {file}, {writer}, {drain_pool_bytes}, {sites}, {types},
    end_mark={end_mark!r}, modules=modules
)
del sys.modules["sitecustomize"]
import sitecustomize
"""
_FOLLOW = """\
import _replay_detach
_replay_detach.follow_forks(_replay_tap, {sites}, {types}, {home!r}, {path!r}, {options!r}, {python!r}, {interpreter!r})
"""


class Follow(NamedTuple):
    """How forked children are recorded: into files named after `path` and the process ID."""

    path: str
    options: "detach.Options"
    interpreter: str | None = None
    """The description of the program's interpreter, if it is not this one."""


class Child:
    """Starts a program that records into the ring of a memory file from its first line on.

    `blocked`: the caller has blocked its signals. `follow`: records forked children too. `python`: path of the
    interpreter, which can have any version. `with_sites`, `with_types`: the hooks in that memory record call sites, and
    types.
    """

    def __init__(
        self,
        command: Sequence[str],
        ring_file: int,
        blocked: Blocked,
        drain_pool_bytes: int = 0,
        follow: "Follow | None" = None,
        python: str = sys.executable,
        with_sites: bool = False,
        with_types: bool = False,
    ) -> None:
        self._modules = {_SITES: with_sites, _TYPES: with_types}
        self._status: int | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="replay-record-"))
        environment = os.environ | {"PYTHONPATH": self._prepare(ring_file, drain_pool_bytes, follow)}
        os.set_inheritable(ring_file, True)
        deliver_pending(blocked.mask)
        arguments = [python, *command]
        self.pid = os.posix_spawn(
            python, arguments, environment, setsigmask=blocked.mask, setsigdef=_IGNORED_BY_PYTHON
        )  # fmt: skip
        forward_signals(self.pid, blocked.witness)

    def has_ended(self) -> bool:
        """Whether the program has ended."""
        if self._status is None:
            process, status = os.waitpid(self.pid, os.WNOHANG)
            if process:
                self._status = status
                shutil.rmtree(self._folder, ignore_errors=True)
        return self._status is not None

    def exit_like_program(self) -> None:
        """Ends this process with the exit code or signal of the program, which has ended."""
        status = self._status or 0
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if number != signal.SIGKILL:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            os.kill(os.getpid(), number)
        sys.exit(os.waitstatus_to_exitcode(status))

    def _prepare(self, ring_file: int, drain_pool_bytes: int, follow: "Follow | None") -> str:
        """Writes the temporary folder; returns the PYTHONPATH of the program."""
        before = os.environ.get("PYTHONPATH")
        shutil.copy(tap.__file__, self._folder / f"{_TAP}.py")
        if follow is not None:
            shutil.copy(detach.__file__, self._folder / f"{_DETACH}.py")
        needed = [name for name, is_needed in self._modules.items() if is_needed]
        for name, module in ((_SITES, sites), (_TYPES, object_types)):
            if name in needed:
                shutil.copy(str(module.__file__), self._folder / f"{name}.py")
        passed = {_SITES: "None", _TYPES: "None"} | {name: name for name in needed}
        hook = _SITECUSTOMIZE.format(
            imports="".join(f"import {name}\n" for name in needed),
            follow=(
                _FOLLOW.format(
                    home=_PACKAGE_HOME,
                    python=sys.executable,
                    sites=passed[_SITES],
                    types=passed[_TYPES],
                    **follow._asdict(),
                )
                if follow
                else ""
            ),
            sites=passed[_SITES],
            types=passed[_TYPES],
            folder=str(self._folder),
            python_path=before,
            file=ring_file,
            writer=os.getpid(),
            drain_pool_bytes=drain_pool_bytes,
            end_mark=TEARDOWN_MARK,
        )
        (self._folder / "sitecustomize.py").write_text(hook)
        return os.pathsep.join(filter(None, (str(self._folder), before)))
