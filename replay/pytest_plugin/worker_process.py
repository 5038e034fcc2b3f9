"""The process beside the tests, as the tests see it; `beside` is what runs in it.

It writes, simulates and judges recordings. So the process under test imports none of the libraries which that
takes, starts no threads for it, and no recording waits for a writer to come up.
"""

import gc
import json
import os
import sys
from typing import Any

from replay.pytest_plugin import EARLIER_THREADS, thread_roots
from replay.recorder import detach, session
from replay.recorder import sites as sites_of_program
from replay.recorder import tap as taps
from replay.recorder.tap import tap
from replay.support.errors import ReplayError

TEST, AFTER, OVER = "test", "after the test", "over"
"""Marks in a recording: where the test begins, where it is done, and where unreachable objects are collected."""

WITH_SITES = taps.site_obstacle() is None
_DEAD = "the process that writes and plays recordings has died"


class Companion:
    """One for each process that runs tests."""

    def __init__(self, folder: str, options: dict[str, object]) -> None:
        """`folder` is what relative paths are relative to."""
        self._ring, self._process = session.own_ring(), os.getpid()
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        request: dict[str, object] = {
            **options, "folder": folder, "ring": self._ring.file, "program": os.getpid(),
            "requests": theirs_in, "answers": theirs_out, "sites_every": int(WITH_SITES),
        }  # fmt: skip
        files = (self._ring.file, theirs_in, theirs_out)
        detach.start(session.PACKAGE_HOME, "replay.pytest_plugin.worker", request, files)
        os.close(theirs_in)
        os.close(theirs_out)
        self._apart = dict(EARLIER_THREADS)
        """Those that still run."""
        self._rehearsed = False
        self._asked = 0
        self._requests, self._answers = os.fdopen(ours_out, "w"), os.fdopen(ours_in)

    @property
    def is_mine(self) -> bool:
        """Not in a forked child, nor once somebody has closed our files."""
        return self._process == os.getpid() and self._ring.is_mine()

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """Returns its answer; a mistake of the user is raised with its sentence."""
        self._send(what, details)
        return self._hear()

    def _send(self, what: str, details: dict[str, Any]) -> None:
        self._asked += 1
        try:
            self._requests.write(json.dumps({"do": what, "number": self._asked, **details}) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise ReplayError(_DEAD) from None

    def _hear(self) -> dict[str, Any]:
        """The next answer to what was asked last; others are of questions that an interrupt cut off."""
        answer: dict[str, Any] = {}
        while answer.get("number") != self._asked:
            line = self._answers.readline()
            if not line:
                raise ReplayError(_DEAD)
            answer = json.loads(line)
        del answer["number"]
        if "bug" in answer:
            raise RuntimeError(f"the process beside the tests failed:\n{answer['bug']}")
        if "error" in answer:
            raise ReplayError(answer["error"])
        return answer

    def start_recording(self, path: str, name: str) -> None:
        """Records this process from here on, as if nothing had happened in it before.

        The first time, a recording of nothing goes before: what is done for the first time allocates more.
        """
        if not self._rehearsed:
            self._rehearsed = True
            self._start(path, name)
            self.end_recording()
        self._start(path, name)

    def _start(self, path: str, name: str) -> None:
        now = thread_roots()
        self._apart = {number: root for number, root in self._apart.items() if now.get(number) is root}
        writer = self.ask("record", path=path, command=["pytest", name], apart=list(self._apart))["writer"]
        self._ring.map()
        _forget_the_past()
        tap.start(writer, taps.POOL_BYTES, sites_of_program if WITH_SITES else None)
        tap.mark("start")  # so that the next one finds all it needs
        tap.mark(TEST)

    def end_recording(self) -> None:
        """Collects garbage, ends the recording, and waits until its file is complete."""
        tap.mark(AFTER)
        gc.collect()
        tap.mark(OVER)
        self.drop_recording()

    def drop_recording(self) -> None:
        """Ends the recording as it is. In a forked child there is none to end."""
        if tap.active:
            tap.stop()
            # Only now: it makes an int of the file's number, but of none up to 256, and no recording may show that.
            if not self.is_mine:
                raise ReplayError("it closed the files by which it is recorded")
            if trouble := self._hear()["trouble"]:
                raise ReplayError(trouble)


def _forget_the_past() -> None:
    """Makes collections in the recording depend on nothing earlier, and empties CPython's free lists.

    What was garbage goes. Freezing keeps all other objects out of a second collection, after which the collector
    takes the heap for empty; that decides when it will look at everything again.
    """
    gc.collect()
    if gc.get_freeze_count() == 0:  # else the program keeps objects frozen, which thawing would not tell from ours
        gc.freeze()
        gc.collect()
        gc.unfreeze()


def obstacle() -> str | None:
    """Why this process cannot be recorded, in one sentence; nothing if it can."""
    return taps.obstacle(clean=True)


def is_recording() -> bool:
    return tap.active or ("_replay_tap" in sys.modules and bool(sys.modules["_replay_tap"].tap.active))
