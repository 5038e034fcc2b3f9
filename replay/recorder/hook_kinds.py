"""What hooks are made for, and the form of their machine code."""

from pathlib import Path
from typing import NamedTuple

TRACKED = 1 << 62
"""In an answer about a live block of a recording with types: the collector tracks the object."""


class Code(NamedTuple):
    """Machine code, and the offsets of the exported functions by name."""

    text: bytes
    offsets: dict[str, int]


class Extras(NamedTuple):
    """What hooks record besides the calls of an interpreter of this version."""

    version: tuple[int, ...]
    sites: bool = False
    types: bool = False


def has_steady_counter() -> bool:
    """Whether the processor's time stamp counter has a constant rate on all cores and in all sleep states."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return {"constant_tsc", "nonstop_tsc"} <= set(flags)
