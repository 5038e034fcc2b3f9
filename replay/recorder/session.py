"""Recordings that a program makes of itself: `with replay.record("trace.parquet"): …`.

The writer is a separate process and not a child of the program, so the program does not find it when it waits for its
children. The writer reports on a pipe that it is ready, and at the end its result. It also ends when the program ends.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from replay.recorder import detach
from replay.recorder import object_types as types_of_program
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
        """Whether this process created the ring (not its parent before a fork), and the file is still open."""
        try:
            return self.process == os.getpid() and os.fstat(self.file).st_ino == self.inode
        except OSError:
            return False

    def map(self) -> None:
        """Maps the file into this process, once. A writer must have written the hooks into it before."""
        if not self.mapped:
            tap.map_shared(self.file)
            self.mapped = True


_rings: list[OwnRing] = []


def own_ring() -> OwnRing:
    """Returns the ring of this process; creates it at the first call."""
    if not _rings or not _rings[-1].is_mine():
        file = detach.make_memory_file(taps.SHARED_BYTES)
        _rings[:] = [OwnRing(file, os.fstat(file).st_ino, os.getpid())]
    return _rings[-1]


class Recording:
    """A recording of this process from `start` to `stop`, or of the block of a `with` statement."""

    def __init__(self, path: str | os.PathLike[str], clean: bool, options: "detach.Options") -> None:
        self.path = Path(path)
        self.rows = 0
        """Number of events in the complete file; 0 before `stop`."""
        self._clean, self._options = clean, options
        self._process = 0

    def start(self) -> "Recording":
        """Starts the writer, waits until it is ready, and starts recording."""
        with_sites, with_types = self._options["sites_every"] > 0, self._options["types"]
        if reason := taps.obstacle(self._clean, with_sites, with_types):
            raise RecordError(reason)
        ring = own_ring()
        self._writer = detach.Writer(PACKAGE_HOME, ring.file, str(self.path.absolute()), self._options)
        process = self._receive(self._writer)["writer"]
        ring.map()
        try:
            tap.start(
                process,
                taps.POOL_BYTES if self._clean else 0,
                sites_of_program if with_sites else None,
                types_of_program if with_types else None,
            )
        except OSError as error:
            tap.stop()
            self._receive(self._writer)
            self.path.unlink()
            raise RecordError(str(error)) from error
        self._process = os.getpid()
        return self

    def flush(self) -> None:
        """Waits until all events so far are in the file. Does nothing in a forked child."""
        if self._process != os.getpid():
            return
        tap.request_flush()
        _raise_trouble(self._receive(self._writer))

    def stop(self) -> None:
        """Ends the recording and waits until the file is complete. Does nothing in a forked child."""
        if self._process != os.getpid():
            return
        self._process = 0
        tap.stop()
        try:
            answer = self._receive(self._writer)
        finally:
            self._writer.close()
        self.rows = answer["rows"]
        _raise_trouble(answer)

    def __enter__(self) -> "Recording":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _receive(self, writer: detach.Writer) -> dict[str, Any]:
        try:
            answer = writer.receive()
        except OSError:
            message = (
                "the program closed the pipe on which the writer reports its end; the writer completes the file anyway"
            )
            raise OutputError(f"{self.path}: {message}") from None
        if answer and "error" not in answer:
            return answer
        writer.close()
        advice = f"`replay record --rescue {self.path}` saves the events that it wrote"
        raise OutputError(str(answer.get("error", f"{self.path}: the writer died; {advice}")))


def _raise_trouble(answer: dict[str, Any]) -> None:
    if answer["trouble"]:
        raise OutputError(answer["trouble"])


def record(
    path: str | os.PathLike[str],
    *,
    clean: bool = False,
    addresses: bool = True,
    sites: bool | int = False,
    types: bool = False,
    force: bool = False,
) -> Recording:
    """Returns a recording of this process into the new file `path`: a context manager that also has `start` and `stop`.

    `clean`: fill every pool of pymalloc first, so that later decisions of pymalloc do not depend on earlier events.
    `addresses`: record the address of each block. `sites`: record call sites (function, file and line); True for every
    call, a number for one call in that many bytes on average. `types`: record the types of objects. `force`: overwrite
    `path`.
    """
    if not isinstance(sites, int) or sites < 0:
        raise RecordError(f"sites is {sites!r}; write True for every call, or the bytes between sampled calls")
    return Recording(path, clean, {"addresses": addresses, "sites_every": int(sites), "types": types, "force": force})
