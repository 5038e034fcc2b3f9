"""Starts a writer that is not a child of this process, for a program that records itself and for a forked child.

Like `replay.recorder.tap` it is copied into recorded programs, so it imports the standard library only.
"""

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import TypedDict

    class Options(TypedDict):
        """The columns of a recording, and whether it may overwrite an existing file."""

        addresses: bool
        sites_every: int
        """As in `tap.AT_SITES_EVERY`."""
        types: bool
        force: bool


_DETACH = "import os, sys; os.posix_spawn(sys.argv[1], [sys.argv[1], '-P', '-c', *sys.argv[2:]], os.environ)"
_MAIN = (
    "import sys; sys.path.append(sys.argv[1]); from importlib import import_module; import_module(sys.argv[2]).main()"
)
_WRITER = "replay.recorder.detached"


def start(
    package_home: str, module: str, request: dict[str, object], files: tuple[int, ...], python: str = sys.executable
) -> None:
    """Runs `main` of a module in a process that is not a child of this one and inherits these file descriptors.

    Its last argument is the request as JSON. `python`: its interpreter.
    """
    file_actions = [(os.POSIX_SPAWN_DUP2, file, file) for file in files]
    arguments = [sys.executable, "-S", "-E", "-c", _DETACH, python, _MAIN, package_home, module, json.dumps(request)]
    intermediate = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=file_actions)
    os.waitpid(intermediate, 0)


class Writer:
    """Starts a writer that records this process into `path`.

    The writer sends lines of JSON on a pipe: that it is ready, the result, or an error. `python` and `interpreter`: the
    writer's interpreter, and the description of this one, if they differ.
    """

    def __init__(
        self,
        package_home: str,
        ring_file: int,
        path: str,
        options: "Options",
        python: str = sys.executable,
        interpreter: "str | None" = None,
    ) -> None:
        read_end, write_end = os.pipe()
        environment = {"ring": ring_file, "pipe": write_end, "program": os.getpid(), "argv": sys.orig_argv}
        environment |= {"version": sys.version_info[:2], "interpreter": interpreter}
        request = {"path": path, "options": options, **environment}
        try:
            start(package_home, _WRITER, request, (ring_file, write_end), python)
        except OSError:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._pipe, self._inode = read_end, os.fstat(read_end).st_ino
        self._received = b""

    def receive(self) -> dict[str, object]:
        """Returns the next message; empty if the writer died. Raises OSError if the program has closed the pipe."""
        while b"\n" not in self._received:
            if not self._is_open():
                raise OSError("the program has closed the pipe")
            more = os.read(self._pipe, 1 << 16)
            if not more:
                return {}
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Closes the pipe. Does nothing if the program has closed it, even if the descriptor is in use again."""
        if self._is_open():
            os.close(self._pipe)

    def _is_open(self) -> bool:
        try:
            return os.fstat(self._pipe).st_ino == self._inode
        except OSError:
            return False


def make_memory_file(length: int) -> int:
    """Returns the descriptor of a new memory file for writer and program, which other programs do not inherit.

    It is never 0, 1 or 2: if the program has a closed standard stream, the stream must stay closed.
    """
    file = os.memfd_create("replay-ring")
    standard = []
    while file <= 2:
        standard.append(file)
        file = os.dup(file)
    for descriptor in standard:
        os.close(descriptor)
    os.ftruncate(file, length)
    return file


def follow_forks(
    taps: "ModuleType",
    sites: "ModuleType | None",
    types: "ModuleType | None",
    package_home: str,
    path: str,
    options: "Options",
    python: str,
    interpreter: "str | None",
) -> None:
    """Records forked children from now on, each into a file named after `path` and the process ID.

    Parent and child have a mark of the same name (`replay.trace.FORK_MARK`): before the fork, and at the start.

    `taps` is the module `replay.recorder.tap`, which can have another name in the program. `sites` and `types` are
    passed to `taps.Tap.start`, `python` and `interpreter` to `Writer`.
    """
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 — pathlib must not be imported here
    prefix, forks = "fork ", 0

    def mark_fork() -> None:
        nonlocal forks
        forks += 1
        taps.tap.mark(f"{prefix}{forks}")

    def record_child() -> str:
        """Returns why the child is not recorded; an empty text if it is."""
        file = make_memory_file(taps.SHARED_BYTES)
        try:
            writer = Writer(package_home, file, f"{stem}.{os.getpid()}{suffix}", options, python, interpreter)
            answer = writer.receive()
            writer.close()
            if "writer" not in answer:
                return str(answer.get("error", "its writer did not start"))
            taps.tap.map_shared(file)
            taps.tap.start(answer["writer"], 0, sites, types)
            taps.tap.mark(f"{prefix}{forks}")
            return ""
        finally:
            os.close(file)

    def enter_child() -> None:
        nonlocal prefix, forks
        try:
            reason = record_child()
        except OSError as error:  # e.g. missing permissions after setuid
            reason = f"its writer cannot be started: {error}"
        if reason:
            print(f"replay: process {os.getpid()} is not recorded: {reason}", file=sys.stderr)
        prefix, forks = f"{prefix}{forks}.", 0

    os.register_at_fork(before=mark_fork, after_in_child=enter_child)
