"""A recording that a program makes of itself: `with replay.record("trace.parquet"): …`.

The writer is a process of its own and no child of the program, which must not meet it when it waits for its children.
It says on a pipe that it is ready, and at the end what it wrote; between the two it ends by itself when the program
does.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from replay.errors import OutputError, ReplayError
from replay.recorder import tap as taps
from replay.recorder.tap import tap

_DETACH = "import os, sys; os.posix_spawn(sys.executable, [sys.executable, '-P', '-c', *sys.argv[1:]], os.environ)"
_WRITER = "import sys; sys.path.append(sys.argv[1]); from replay.recorder.detached import main; main()"
_PACKAGE_HOME = str(Path(__file__).parents[2])


class RecordError(ReplayError):
    """This process cannot be recorded."""


@dataclass
class _Ring:
    """The memory file of this process, which its recordings use one after the other."""

    file: int
    inode: int
    process: int

    def is_mine(self) -> bool:
        """Not in a forked child, nor once the program has closed the file."""
        try:
            return self.process == os.getpid() and os.fstat(self.file).st_ino == self.inode
        except OSError:
            return False


class Recording:
    """One recording of this process, from `start` to `stop`; as a context manager, of what happens in its block."""

    _ring: _Ring | None = None

    def __init__(self, path: str | os.PathLike[str], clean: bool, addresses: bool, force: bool) -> None:
        self.path = Path(path)
        self.rows = 0
        """Events in the file, once it is complete."""
        self._clean = clean
        self._request = {"path": str(self.path.absolute()), "addresses": addresses, "force": force}
        self._process = 0

    def start(self) -> "Recording":
        """Records from here on, once the writer is ready."""
        if reason := taps.obstacle(self._clean):
            raise RecordError(reason)
        ring = Recording._ring
        if ring is None or not ring.is_mine():
            file = os.memfd_create("replay-ring")
            os.ftruncate(file, taps.SHARED_BYTES)
            ring = Recording._ring = _Ring(file, os.fstat(file).st_ino, os.getpid())
            fresh = True
        else:
            fresh = False
        self._process = os.getpid()
        writer = self._start_writer(ring.file)
        if fresh:
            tap.map_shared(ring.file)
        tap.start(writer, taps.POOL_BYTES if self._clean else 0)
        return self

    def stop(self) -> None:
        """Ends the recording and waits until the file is complete. In a forked child it does nothing."""
        if self._process != os.getpid():
            return
        self._process = 0
        tap.stop()
        said = self._hear()
        self._pipe.close()
        self.rows = said["rows"]
        if said["trouble"]:
            raise OutputError(said["trouble"])

    def __enter__(self) -> "Recording":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _start_writer(self, ring_file: int) -> int:
        """The writer's process number."""
        ours, theirs = os.pipe()
        request = self._request | {"ring": ring_file, "pipe": theirs, "program": os.getpid(), "argv": sys.orig_argv}
        keep = [(os.POSIX_SPAWN_DUP2, file, file) for file in (ring_file, theirs)]
        arguments = [sys.executable, "-S", "-E", "-c", _DETACH, _WRITER, _PACKAGE_HOME, json.dumps(request)]
        parent = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=keep)
        os.close(theirs)
        os.waitpid(parent, 0)
        self._pipe = os.fdopen(ours)
        return int(self._hear()["writer"])

    def _hear(self) -> dict[str, Any]:
        line = self._pipe.readline()
        if not line:
            raise OutputError(f"{self.path}: the writer died; `replay record --rescue {self.path}` saves what it wrote")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            self._process = 0
            raise OutputError(said["error"])
        return said


def record(
    path: str | os.PathLike[str], *, clean: bool = False, addresses: bool = True, force: bool = False
) -> Recording:
    """A recording of this process into the new file `path`: a context manager, with `start` and `stop` besides.

    `clean` first fills every pool that pymalloc has, so that its later decisions depend on nothing earlier.
    `addresses` keeps where each block was. `force` overwrites `path`.
    """
    return Recording(path, clean, addresses, force)
