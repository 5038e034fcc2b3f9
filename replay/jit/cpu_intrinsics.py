"""Processor instructions that numba has no word for; what each does in plain Python stands here.

`replay.jit._numba.intrinsics` has the machine code. `prefetch` asks for memory that will be needed soon: a simulation
knows what comes next, which no real allocator does, so rows ahead name blocks whose records can be on their way to the
cache by the time they are simulated.
"""

import time
from typing import Any

_LOW = (1 << 64) - 1


def prefetch(array: Any, index: int) -> None:
    """Has no visible effect: `array[index]` will be wanted soon."""


def copy_record(source: Any, into: Any, index: int) -> None:
    """`into[index] = source[0]`, in one piece: numba copies a record byte by byte."""
    into[index] = source[0]


def bit_length(value: int) -> int:
    """Binary digits of an int64 above 0."""
    return int(value).bit_length()


def add_product(low: int, high: int, factor: int, other: int) -> tuple[int, int]:
    """The 128-bit integer `high` · 2^64 + `low` plus the product of two int64, as two int64 again."""
    total = (int(high) << 64 | int(low) & _LOW) + int(factor) * int(other)
    low = total & _LOW
    return low - (low >> 63 << 64), total >> 64


def opaque(value: int) -> int:
    """The same int64; LLVM does not know where it comes from, and does not build on it."""
    return value


def counter() -> int:
    """The processor's time stamp counter, as an int64; in plain Python a clock with another unit."""
    return time.perf_counter_ns()
