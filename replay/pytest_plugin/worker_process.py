"""Starts the worker process and sends requests to it. `worker` is the program of that process.

The worker writes, simulates and judges recordings. So the process under test does not import the libraries for that,
starts no threads, and does not wait for a writer to start.
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
"""Marks in a recording: start of the test, end of the test, end of the garbage collection after it."""

WITH_SITES = taps.site_obstacle() is None
_DEAD = "the process that writes and simulates recordings has died"


class Companion:
    """The worker process of one process that runs tests."""

    def __init__(self, folder: str, options: dict[str, object]) -> None:
        """Starts the worker. Relative paths are relative to `folder`."""
        self._ring, self._process = session.own_ring(), os.getpid()
        requests_read, requests_write = os.pipe()
        answers_read, answers_write = os.pipe()
        request: dict[str, object] = {
            **options, "folder": folder, "ring": self._ring.file, "program": os.getpid(),
            "requests": requests_read, "answers": answers_write, "sites_every": int(WITH_SITES),
        }  # fmt: skip
        files = (self._ring.file, requests_read, answers_write)
        detach.start(session.PACKAGE_HOME, "replay.pytest_plugin.worker", request, files)
        os.close(requests_read)
        os.close(answers_write)
        self._excluded = dict(EARLIER_THREADS)
        """Threads that still run and are excluded from recordings."""
        self._rehearsed = False
        self._request_number = 0
        self._requests, self._answers = os.fdopen(requests_write, "w"), os.fdopen(answers_read)

    @property
    def is_mine(self) -> bool:
        """Whether this process started the worker (not its parent before a fork), and the files are still open."""
        return self._process == os.getpid() and self._ring.is_mine()

    def ask(self, request: str, **details: Any) -> dict[str, Any]:
        """Sends a request and returns its answer. Raises ReplayError for a mistake of the user."""
        self._send(request, details)
        return self._receive()

    def _send(self, request: str, details: dict[str, Any]) -> None:
        self._request_number += 1
        try:
            self._requests.write(json.dumps({"do": request, "number": self._request_number, **details}) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise ReplayError(_DEAD) from None

    def _receive(self) -> dict[str, Any]:
        """Returns the next answer to the last request. Skips answers to earlier requests, which were interrupted."""
        answer: dict[str, Any] = {}
        while answer.get("number") != self._request_number:
            line = self._answers.readline()
            if not line:
                raise ReplayError(_DEAD)
            answer = json.loads(line)
        del answer["number"]
        if "bug" in answer:
            raise RuntimeError(f"replay's worker process failed:\n{answer['bug']}")
        if "error" in answer:
            raise ReplayError(answer["error"])
        return answer

    def start_recording(self, path: str, name: str) -> None:
        """Starts recording this process, with collector and free lists in a defined state.

        Code that runs for the first time allocates more, so an empty recording precedes the first one.
        """
        if not self._rehearsed:
            self._rehearsed = True
            self._start(path, name)
            self.end_recording()
        self._start(path, name)

    def _start(self, path: str, name: str) -> None:
        now = thread_roots()
        self._excluded = {number: root for number, root in self._excluded.items() if now.get(number) is root}
        writer = self.ask("record", path=path, command=["pytest", name], excluded=list(self._excluded))["writer"]
        self._ring.map()
        _reset_collector()
        tap.start(writer, taps.POOL_BYTES, sites_of_program if WITH_SITES else None)
        tap.mark("start")  # the first mark allocates more than later ones
        tap.mark(TEST)

    def end_recording(self) -> None:
        """Collects garbage, ends the recording, and waits until its file is complete."""
        tap.mark(AFTER)
        gc.collect()
        tap.mark(OVER)
        self.drop_recording()

    def drop_recording(self) -> None:
        """Ends the recording without a collection. Does nothing in a forked child, which is not recorded."""
        if tap.active:
            tap.stop()
            # Checked after the end of the recording, because the number of the file can be a new int object.
            if not self.is_mine:
                raise ReplayError("it closed the files of the recording")
            if trouble := self._receive()["trouble"]:
                raise ReplayError(trouble)


def _reset_collector() -> None:
    """Collects garbage, empties CPython's free lists, and makes later collections independent of earlier ones.

    The second collection runs while all objects are frozen. The collector then regards the heap as empty, which decides
    when it runs the next full collection.
    """
    gc.collect()
    if gc.get_freeze_count() == 0:  # else `unfreeze` would also unfreeze objects that the program froze
        gc.freeze()
        gc.collect()
        gc.unfreeze()


def obstacle() -> str | None:
    """Returns why this process cannot be recorded, in one sentence; None if it can."""
    return taps.obstacle(clean=True)


def is_recording() -> bool:
    return tap.active or ("_replay_tap" in sys.modules and bool(sys.modules["_replay_tap"].tap.active))
