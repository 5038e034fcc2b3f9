"""The writer as a process of its own, for a program that records itself: `replay.recorder.session` starts it."""

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replay.recorder.ring import Ring
from replay.recorder.writer import Writer, Written
from replay.support.errors import ReplayError


def main() -> None:
    """Answers the request in the last argument, as lines of JSON on its pipe."""
    request = json.loads(sys.argv[-1])
    leave_terminal()
    with os.fdopen(request["pipe"], "w") as pipe:

        def say(content: dict[str, object]) -> None:
            with suppress(BrokenPipeError):
                pipe.write(json.dumps(content) + "\n")
                pipe.flush()

        try:
            say(asdict(_write(request, say)))
        except (ReplayError, OSError) as error:
            say({"error": str(error)})


def leave_terminal() -> None:
    """Moves this process to the background: a new session, Ctrl-C ignored, standard streams closed."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)


def _write(request: dict[str, Any], say: Callable[[dict[str, object]], None]) -> Written:
    """Writes until the program says that it is over, or is no more; says when it is ready, and after each flush."""
    program = os.pidfd_open(request["program"])
    wishes = request["wishes"]
    ring = Ring(request["ring"], wishes["sites_every"])
    path, argv = Path(request["path"]), request["argv"]
    writer = Writer(ring, path, argv, addresses=wishes["addresses"], force=wishes["force"])
    say({"writer": os.getpid()})
    writer.run(
        lambda: ring.ended or bool(select.select([program], [], [], 0)[0]), lambda trouble: say({"trouble": trouble})
    )
    return writer.finish()
