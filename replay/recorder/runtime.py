"""What is in force in a recorded process, and how much of its memory is resident, as `/proc` shows it.

Shared memory is left out: the ring is in it. `/proc/PID/smaps_rollup` would count the ring, and takes time in
proportion to what is mapped; `/proc/PID/status` has the kinds of memory separately and takes some microseconds.
"""

import re
import time
from pathlib import Path
from typing import NamedTuple

from replay.recorder.ring import Ring
from replay.trace import ResidentMemory, Runtime

LOOK_EVERY_S = 0.1
_FIELD = re.compile(r"^(VmHWM|VmRSS|RssShmem):\s+(\d+) kB$", re.MULTILINE)


class Status(NamedTuple):
    """Bytes, of `/proc/PID/status`."""

    highest: int
    """The most that ever was resident, shared memory included."""
    resident: int
    shared: int

    @property
    def own(self) -> int:
        """Resident now, without what is shared."""
        return self.resident - self.shared


def read_status(text: str) -> Status | None:
    """None if the kernel does not report all values."""
    fields = {name: int(number) << 10 for name, number in _FIELD.findall(text)}
    return Status(fields["VmHWM"], fields["VmRSS"], fields["RssShmem"]) if len(fields) == 3 else None


class Observer:
    """Looks at the program that records into a ring, from beside it, at most every LOOK_EVERY_S."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._peak_bytes = 0
        self._last: Status | None = None
        self._next_s = 0.0

    def look(self) -> None:
        """Does nothing if it is too early; a program that is gone leaves what was seen last."""
        now_s = time.monotonic()
        if now_s < self._next_s or not self._ring.program:
            return
        self._next_s = now_s + LOOK_EVERY_S
        try:
            status = read_status(Path(f"/proc/{self._ring.program}/status").read_text())
        except OSError:
            return
        if status and not self._ring.status(1):
            self._last = status
            self._peak_bytes = max(self._peak_bytes, status.own)

    def runtime(self) -> Runtime:
        """What is known by now."""
        ring = self._ring
        return Runtime(ring.allocator, ring.libc, ring.malloc, ring.separate_heaps, self._resident())

    def _resident(self) -> ResidentMemory | None:
        start, end = read_status(self._ring.status(0)), read_status(self._ring.status(1)) or self._last
        if start is None or end is None:
            return None
        peak_bytes = max(start.own, self._peak_bytes, end.own)
        if end.highest > start.highest:  # so it was reached since
            peak_bytes = max(peak_bytes, end.highest - end.shared)
        return ResidentMemory(start.own, peak_bytes, end.own)
