"""Processor instructions that numba lacks, as functions in plain Python.

`replay.jit._numba.intrinsics` has their machine code. `prefetch` loads memory into the cache before it is used: later
rows of a trace name the blocks that will be freed, which a real allocator does not know in advance.
"""

import time
from typing import Any

_LOW = (1 << 64) - 1


def prefetch(array: Any, index: int) -> None:
    """Loads `array[index]` into the processor's cache. Has no visible effect."""


def copy_record(source: Any, into: Any, index: int) -> None:
    """Does `into[index] = source[0]` in one piece, because numba copies a record byte by byte."""
    into[index] = source[0]


def bit_length(value: int) -> int:
    """Returns the number of binary digits of an int64 above 0."""
    return int(value).bit_length()


def add_product(low: int, high: int, factor: int, other: int) -> tuple[int, int]:
    """Adds the product of two int64 to the 128-bit integer `high` · 2^64 + `low`; returns low and high word."""
    total = (int(high) << 64 | int(low) & _LOW) + int(factor) * int(other)
    low = total & _LOW
    return low - (low >> 63 << 64), total >> 64


def opaque(value: int) -> int:
    """Returns the same int64 as a value that LLVM knows nothing about, so that it derives no other values from it."""
    return value


def counter() -> int:
    """Returns the processor's time stamp counter as an int64; in plain Python, a clock with another unit."""
    return time.perf_counter_ns()
