"""A recording that a program makes of itself: `with replay.record("trace.parquet"): …`.

The writer is a process of its own and no child of the program, which must not meet it when it waits for its children.
It says on a pipe that it is ready, and at the end what it wrote; between the two it ends by itself when the program
does.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from replay.recorder import detach
from replay.recorder import sites as sites_of_program
from replay.recorder import tap as taps
from replay.recorder.tap import tap
from replay.support.errors import OutputError, ReplayError

PACKAGE_HOME = str(Path(__file__).parents[2])


class RecordError(ReplayError):
    """This process cannot be recorded."""


@dataclass
class OwnRing:
    """The memory file of this process, which all its recordings use one after the other."""

    file: int
    inode: int
    process: int
    mapped: bool = False

    def is_mine(self) -> bool:
        """Not in a forked child, nor once the program has closed the file."""
        try:
            return self.process == os.getpid() and os.fstat(self.file).st_ino == self.inode
        except OSError:
            return False

    def map(self) -> None:
        """Once a writer has laid the hooks into it."""
        if not self.mapped:
            tap.map_shared(self.file)
            self.mapped = True


_rings: list[OwnRing] = []


def own_ring() -> OwnRing:
    """The ring of this process, made when it is first wanted."""
    if not _rings or not _rings[-1].is_mine():
        file = detach.make_memory_file(taps.SHARED_BYTES)
        _rings[:] = [OwnRing(file, os.fstat(file).st_ino, os.getpid())]
    return _rings[-1]


class Recording:
    """One recording of this process, from `start` to `stop`; as a context manager, of what happens in its block."""

    def __init__(self, path: str | os.PathLike[str], clean: bool, wishes: "detach.Wishes") -> None:
        self.path = Path(path)
        self.rows = 0
        """Events in the file, once it is complete."""
        self._clean, self._wishes = clean, wishes
        self._process = 0

    def start(self) -> "Recording":
        """Records from here on, once the writer is ready."""
        with_sites = self._wishes["sites_every"] > 0
        if reason := taps.obstacle(self._clean, with_sites):
            raise RecordError(reason)
        ring = own_ring()
        self._writer = detach.Writer(PACKAGE_HOME, ring.file, str(self.path.absolute()), self._wishes)
        process = self._hear(self._writer)["writer"]
        ring.map()
        try:
            tap.start(process, taps.POOL_BYTES if self._clean else 0, sites_of_program if with_sites else None)
        except OSError as error:
            tap.stop()
            self._hear(self._writer)
            self.path.unlink()
            raise RecordError(str(error)) from error
        self._process = os.getpid()
        return self

    def flush(self) -> None:
        """Waits until all that was recorded so far is in the file. In a forked child it does nothing."""
        if self._process != os.getpid():
            return
        tap.ask_flush()
        _raise_trouble(self._hear(self._writer))

    def stop(self) -> None:
        """Ends the recording and waits until the file is complete. In a forked child it does nothing."""
        if self._process != os.getpid():
            return
        self._process = 0
        tap.stop()
        try:
            said = self._hear(self._writer)
        finally:
            self._writer.close()
        self.rows = said["rows"]
        _raise_trouble(said)

    def __enter__(self) -> "Recording":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _hear(self, writer: detach.Writer) -> dict[str, Any]:
        try:
            said = writer.hear()
        except OSError:
            what = (
                "the program closed the pipe by which the writer tells that it is done; it completes the file even so"
            )
            raise OutputError(f"{self.path}: {what}") from None
        if said and "error" not in said:
            return said
        writer.close()
        advice = f"`replay record --rescue {self.path}` saves what it wrote"
        raise OutputError(str(said.get("error", f"{self.path}: the writer died; {advice}")))


def _raise_trouble(said: dict[str, Any]) -> None:
    if said["trouble"]:
        raise OutputError(said["trouble"])


def record(
    path: str | os.PathLike[str],
    *,
    clean: bool = False,
    addresses: bool = True,
    sites: bool | int = False,
    force: bool = False,
) -> Recording:
    """A recording of this process into the new file `path`: a context manager, with `start` and `stop` besides.

    `clean` first fills every pool that pymalloc has, so that its later decisions depend on nothing earlier.
    `addresses` keeps where each block was. `sites` tells the function and the line from which a call came: with True of
    every call, with a number of one call in so many bytes. `force` overwrites `path`.
    """
    if not isinstance(sites, int) or sites < 0:
        raise RecordError(f"sites is {sites!r}; say True for every call, or one call in how many bytes")
    return Recording(path, clean, {"addresses": addresses, "sites_every": int(sites), "force": force})
