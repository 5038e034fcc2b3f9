"""Compiles the loops of floor and ceiling in a second process, while this one compiles the loop of the stack.

    python -m replay.commands.parallel_compilation

Compiling holds the GIL, so a thread would not help. The processes share their results in the kernel cache.
"""

import subprocess
import sys
from typing import Any

FLOOR, CEILING = "ideal", "bump"


class ParallelCompilation:
    """The second process, if it was started; it ends with the block."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ParallelCompilation":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def begin(self) -> None:
        from replay.sweeps.threads import processors

        if processors() > 1:
            null = subprocess.DEVNULL
            command = [sys.executable, "-m", __name__]
            self._process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)

    def wait(self) -> None:
        """Waits for the end of the process. Kernels that it did not compile are then compiled by this one."""
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
