"""All functions of the model of Linux that allocators call, behind one kernel."""

import numpy as np

from replay.allocators import linux
from replay.allocators.linux import (
    advise_huge_pages,
    advise_small_pages,
    brk,
    dontneed,
    free_lazily,
    mmap,
    mmap_aligned,
    mmap_at,
    mremap,
    munmap,
    protect,
    reserve,
    touch,
    trim,
    unprotect,
)
from replay.jit.compiling import entry

CALLS = (
    "mmap", "mmap_at", "mmap_aligned", "reserve", "protect", "unprotect", "munmap", "mremap", "brk", "touch",
    "dontneed", "free_lazily", "advise_huge_pages", "advise_small_pages", "trim",
)  # fmt: skip
CODES = {getattr(linux, name): code for code, name in enumerate(CALLS)}


@entry
def perform(stack, code, a, b, c, d, e):
    """The answer of one call, 0 if it has none; each takes as many of the arguments as it needs."""
    answer = np.int64(0)
    if code == 0:
        answer = mmap(stack, a)
    elif code == 1:
        answer = mmap_at(stack, a, b, c)
    elif code == 2:
        answer = mmap_aligned(stack, a, b, c, d, e)
    elif code == 3:
        answer = reserve(stack, a, b)
    elif code == 4:
        protect(stack, a, b)
    elif code == 5:
        unprotect(stack, a, b)
    elif code == 6:
        munmap(stack, a, b)
    elif code == 7:
        answer = mremap(stack, a, b, c)
    elif code == 8:
        brk(stack, a)
    elif code == 9:
        touch(stack, a, b)
    elif code == 10:
        dontneed(stack, a, b)
    elif code == 11:
        free_lazily(stack, a, b)
    elif code == 12:
        advise_huge_pages(stack, a, b)
    elif code == 13:
        advise_small_pages(stack, a, b)
    elif code == 14:
        answer = trim(stack, a, b, c, d)
    return answer


def call(operation, stack, *arguments: int) -> int:
    """The same from Python."""
    numbers = [int(number) for number in (*arguments, *[0] * (5 - len(arguments)))]
    return perform(stack, CODES[operation], *numbers)
