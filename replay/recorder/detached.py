"""The writer process of a program that records itself. `replay.recorder.session` starts it."""

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
    """Executes the request in the last argument. Sends lines of JSON on the pipe that the request names."""
    request = json.loads(sys.argv[-1])
    leave_terminal()
    with os.fdopen(request["pipe"], "w") as pipe:

        def send(content: dict[str, object]) -> None:
            with suppress(BrokenPipeError):
                pipe.write(json.dumps(content) + "\n")
                pipe.flush()

        try:
            send(asdict(_write(request, send)))
        except (ReplayError, OSError) as error:
            send({"error": str(error)})


def leave_terminal() -> None:
    """Moves this process to the background: a new session, Ctrl-C ignored, standard streams closed."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)


def _write(request: dict[str, Any], send: Callable[[dict[str, object]], None]) -> Written:
    """Writes until the program ends the recording or the process ends. Sends a message when ready and after a flush."""
    program = os.pidfd_open(request["program"])
    options = request["options"]
    ring = Ring(request["ring"], options["sites_every"], options["types"], tuple(request["version"]))
    path, argv = Path(request["path"]), request["argv"]
    writer = Writer(
        ring, path, argv,
        addresses=options["addresses"], force=options["force"], interpreter=request["interpreter"],
    )  # fmt: skip
    send({"writer": os.getpid()})
    writer.run(
        lambda: ring.ended or bool(select.select([program], [], [], 0)[0]), lambda trouble: send({"trouble": trouble})
    )
    return writer.finish()
