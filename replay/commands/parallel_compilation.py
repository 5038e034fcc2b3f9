"""The loops of floor and ceiling, compiled by a process of its own while this one compiles the loop of the stack.

    python -m replay.commands.parallel_compilation

Compiling is Python's work and holds its lock: threads would not help. What a process compiles is on disk for all.
"""

import subprocess
import sys
from typing import Any

FLOOR, CEILING = "ideal", "bump"


class Elsewhere:
    """That process, if it is begun; it does not outlive the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def begin(self) -> None:
        from replay.sweeps.threads import processors

        if processors() > 1:
            nowhere = subprocess.DEVNULL
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere)

    def wait(self) -> None:
        """Until it is done: whatever it did not come to is then compiled here."""
        if self._process:
            self._process.wait()


def main() -> None:
    from replay.config import load_config
    from replay.simulation.run import run
    from replay.trace import Domain, Events, MemoryTrace, Op

    events = Events.empty(1)
    row = {"time_ns": 0, "thread": 0, "op": Op.MALLOC, "domain": Domain.OBJ, "block": 0, "size": 8}
    for name, value in row.items():
        getattr(events, name)[0] = value
    for name in (FLOOR, CEILING):
        run(MemoryTrace([events]), load_config(name))


if __name__ == "__main__":
    main()
