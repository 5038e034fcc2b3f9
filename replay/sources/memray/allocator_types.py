"""Ops and domains for the members of memray's `AllocatorType` by name, and their numbers in captures.

The numbers depend on the capture format. Up to format 11 (memray 1.18) they begin with MALLOC = 1 and end with
PYMALLOC_FREE = 15; in formats 12 and 13 (memray 1.19 and 1.20) they begin with PYMALLOC_FREE = 1. memray's library
reads only the format that it writes, so its own enum has the numbers of every capture that it can open.

Captures have no alignments and no page size, so aligned allocations are mallocs here.
"""

from collections.abc import Mapping

import numpy as np

from replay.trace import Domain, Op

UNKNOWN, MUNMAP, MMAP = 253, 254, 255
"""Values instead of an `Op`: an unknown number, and calls that are not of an allocator."""
_CALLS = {
    "PYMALLOC_FREE": (Op.FREE, Domain.OBJ),
    "PYMALLOC_MALLOC": (Op.MALLOC, Domain.OBJ),
    "PYMALLOC_CALLOC": (Op.CALLOC, Domain.OBJ),
    "PYMALLOC_REALLOC": (Op.REALLOC, Domain.OBJ),
    "FREE": (Op.FREE, Domain.LIBC),
    "MALLOC": (Op.MALLOC, Domain.LIBC),
    "REALLOC": (Op.REALLOC, Domain.LIBC),
    "CALLOC": (Op.CALLOC, Domain.LIBC),
    "POSIX_MEMALIGN": (Op.MALLOC, Domain.LIBC),
    "ALIGNED_ALLOC": (Op.MALLOC, Domain.LIBC),
    "MEMALIGN": (Op.MALLOC, Domain.LIBC),
    "VALLOC": (Op.MALLOC, Domain.LIBC),
    "PVALLOC": (Op.MALLOC, Domain.LIBC),
    "MMAP": (MMAP, Domain.LIBC),
    "MUNMAP": (MUNMAP, Domain.LIBC),
}
NUMBERS_FROM_FORMAT_12 = {name: number for number, name in enumerate(_CALLS, 1)}
"""`_CALLS` lists the members in this order."""


def call_tables(numbers: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns op and domain by the number of an allocator. `numbers` has the number of each name; other ops are
    UNKNOWN."""
    ops, domains = np.full(256, UNKNOWN, np.uint8), np.full(256, int(Domain.LIBC), np.uint8)
    for name, number in numbers.items():
        if name in _CALLS:
            ops[number], domains[number] = _CALLS[name]
    return ops, domains
