"""Allocators and C library of a recorded process, and its resident memory from `/proc`.

Shared memory is not counted, because it contains the ring. `/proc/PID/smaps_rollup` would count the ring, and its cost
grows with the mapped memory. `/proc/PID/status` has each kind of memory separately and takes some microseconds.
"""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from replay.config.glibc_environment import settings_in
from replay.recorder.ring import Ring
from replay.trace import ResidentMemory, Runtime

SAMPLE_EVERY_S = 0.1
_FIELD = re.compile(r"^(VmHWM|VmRSS|RssShmem):\s+(\d+) kB$", re.MULTILINE)


class Status(NamedTuple):
    """Values of `/proc/PID/status`, in bytes."""

    highest: int
    """Peak of resident memory, shared memory included."""
    resident: int
    shared: int

    @property
    def own(self) -> int:
        """Resident memory now, without shared memory."""
        return self.resident - self.shared


def read_status(text: str) -> Status | None:
    """Returns the values of the file's text; None if one is missing."""
    fields = {name: int(number) << 10 for name, number in _FIELD.findall(text)}
    return Status(fields["VmHWM"], fields["VmRSS"], fields["RssShmem"]) if len(fields) == 3 else None


class Observer:
    """Samples the resident memory of the recorded process, at most every SAMPLE_EVERY_S."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._peak_bytes = 0
        self._last: Status | None = None
        self._next_s = 0.0

    def sample(self) -> None:
        """Reads the memory of the process. Does nothing if it is too early or the process has ended."""
        now_s = time.monotonic()
        if now_s < self._next_s or not self._ring.program:
            return
        self._next_s = now_s + SAMPLE_EVERY_S
        try:
            status = read_status(Path(f"/proc/{self._ring.program}/status").read_text())
        except OSError:
            return
        if status and not self._ring.status(1):
            self._last = status
            self._peak_bytes = max(self._peak_bytes, status.own)

    def runtime(self) -> Runtime:
        """Returns the allocators and the memory so far. The program has the environment of this process."""
        ring = self._ring
        settings = settings_in(os.environ)
        return Runtime(ring.allocator, ring.libc, ring.malloc, ring.separate_heaps, self._resident(), settings)

    def _resident(self) -> ResidentMemory | None:
        start, end = read_status(self._ring.status(0)), read_status(self._ring.status(1)) or self._last
        if start is None or end is None:
            return None
        peak_bytes = max(start.own, self._peak_bytes, end.own)
        if end.highest > start.highest:  # the peak was reached during the recording
            peak_bytes = max(peak_bytes, end.highest - end.shared)
        return ResidentMemory(start.own, peak_bytes, end.own)
