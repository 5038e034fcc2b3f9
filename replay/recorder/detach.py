"""Starts a writer that is no child of this process: for a program that records itself, and for a forked child.

Like `replay.recorder.tap` it is copied into recorded programs, so it imports the standard library only.
"""

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import TypedDict

    class Wishes(TypedDict):
        """What a recording is to hold, and whether it may take the place of a file that is there."""

        addresses: bool
        sites_every: int
        """As in `tap.AT_SITES_EVERY`."""
        force: bool


_DETACH = "import os, sys; os.posix_spawn(sys.executable, [sys.executable, '-P', '-c', *sys.argv[1:]], os.environ)"
_MAIN = (
    "import sys; sys.path.append(sys.argv[1]); from importlib import import_module; import_module(sys.argv[2]).main()"
)
_WRITER = "replay.recorder.detached"


def start(package_home: str, module: str, request: dict[str, object], files: tuple[int, ...]) -> None:
    """Runs `main` of that module in a process that is no child of this one, and that has these files open.

    It finds the request as JSON in its last argument.
    """
    keep = [(os.POSIX_SPAWN_DUP2, file, file) for file in files]
    arguments = [sys.executable, "-S", "-E", "-c", _DETACH, _MAIN, package_home, module, json.dumps(request)]
    passing = os.posix_spawn(sys.executable, arguments, os.environ, file_actions=keep)
    os.waitpid(passing, 0)


class Writer:
    """A writer that was asked for; `path` becomes the recording of this process.

    It answers in lines of JSON on a pipe: that it is ready, what it wrote, or what is wrong.
    """

    def __init__(self, package_home: str, ring_file: int, path: str, wishes: "Wishes") -> None:
        ours, theirs = os.pipe()
        surroundings = {"ring": ring_file, "pipe": theirs, "program": os.getpid(), "argv": sys.orig_argv}
        try:
            start(package_home, _WRITER, {"path": path, "wishes": wishes, **surroundings}, (ring_file, theirs))
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._pipe, self._inode = ours, os.fstat(ours).st_ino
        self._heard = b""

    def hear(self) -> dict[str, object]:
        """Its next answer; empty if it died, an OSError if the program has closed the pipe."""
        while b"\n" not in self._heard:
            if not self._is_open():
                raise OSError("the program has closed the pipe")
            more = os.read(self._pipe, 1 << 16)
            if not more:
                return {}
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Unless it is closed, or something else by now: that is the program's."""
        if self._is_open():
            os.close(self._pipe)

    def _is_open(self) -> bool:
        try:
            return os.fstat(self._pipe).st_ino == self._inode
        except OSError:
            return False


def make_memory_file(length: int) -> int:
    """The file that writer and program share, empty; a descriptor that no other program inherits.

    It never is that of a standard stream: where one is closed, the program must find it closed.
    """
    file = os.memfd_create("replay-ring")
    standard = []
    while file <= 2:
        standard.append(file)
        file = os.dup(file)
    for each in standard:
        os.close(each)
    os.ftruncate(file, length)
    return file


def follow_forks(
    taps: "ModuleType", sites: "ModuleType | None", package_home: str, path: str, wishes: "Wishes"
) -> None:
    """Has forked children recorded too, each into a file of its own, named after `path` and its process.

    `taps` is the module `replay.recorder.tap`, whatever it is called here, and `sites` what `taps.Tap.start` gets.
    """
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 — pathlib is not for us to import

    def record_child() -> str:
        """Returns why it is not recorded; nothing if it is."""
        file = make_memory_file(taps.SHARED_BYTES)
        try:
            writer = Writer(package_home, file, f"{stem}.{os.getpid()}{suffix}", wishes)
            said = writer.hear()
            writer.close()
            if "writer" not in said:
                return str(said.get("error", "its writer did not start"))
            taps.tap.map_shared(file)
            taps.tap.start(said["writer"], 0, sites)
            return ""
        finally:
            os.close(file)

    def enter_child() -> None:
        try:
            reason = record_child()
        except OSError as error:  # such as a lack of permissions after setuid
            reason = f"its writer cannot be started: {error}"
        if reason:
            print(f"replay: process {os.getpid()} is not recorded: {reason}", file=sys.stderr)

    os.register_at_fork(after_in_child=enter_child)
