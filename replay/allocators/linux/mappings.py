"""mmap with an address and flags, mprotect, and aligned mappings, which need several system calls."""

import numpy as np

from replay.allocators._stack import change_mapped, log
from replay.allocators.linux.areas import CHARGED, NO_RESERVE, WRITABLE, change_areas
from replay.allocators.linux.calls import MMAP, MPROTECT, brk, choose_place, munmap
from replay.allocators.linux.regions import cut_all, highest_hole, hole_at, put_region, take_region
from replay.allocators.linux.reserves import add_reserved, release_reserved
from replay.allocators.linux.tables import end_of_pages
from replay.jit.compiling import cold, leaf

NO_ACCESS, NOT_RESERVED, FIXED, NO_REPLACE = 1, 2, 4, 8
"""Flags of `mmap_at`: PROT_NONE (without it, PROT_READ | PROT_WRITE); MAP_NORESERVE; MAP_FIXED; MAP_FIXED_NOREPLACE."""


@leaf
def _hole_for(state, hint, length):
    """Returns the index at which a region at `hint` would be inserted; -1 if Linux does not map `length` bytes there.

    Addresses from `mmap_base` on are not free: libraries and the stack are there.
    """
    space = state.space[0]
    if hint < space.address_min or length > space.mmap_base - hint:
        return np.int64(-1)
    if hint < space.brk and hint + length > space.brk_base:
        return np.int64(-1)
    return np.int64(hole_at(state, hint, length))


@leaf
def _lowest_hint(state, hint):
    """Returns the hint rounded down to pages, and at least `address_min`; 0 if there is no hint."""
    space = state.space[0]
    hint &= -space.page_size
    return max(hint, space.address_min) if hint > 0 else hint


@cold
def mmap_at(stack, hint, length, flags):
    """mmap of `length` bytes (rounded up to pages) at an address, with flags. Returns the address, or -1.

    Without FIXED and NO_REPLACE, memory is mapped at `hint` if all of it is free. Else Linux chooses the address, not
    aligned to huge pages, unlike for a mapping without a hint (0). FIXED unmaps existing mappings at `hint`. With
    NO_REPLACE, the call fails if the addresses are not free.
    """
    state, tally = stack.linux, stack.tally[0]
    length = end_of_pages(state, 0, length)
    kind = (0 if flags & NO_ACCESS else WRITABLE) | (NO_RESERVE if flags & NOT_RESERVED else 0)
    tally.mmap += 1
    tally.mmap_bytes += length
    if not flags & (FIXED | NO_REPLACE):
        hint = _lowest_hint(state, hint)
    elif flags & FIXED:
        cut_all(stack, hint, hint + length)
    if hint or flags & (FIXED | NO_REPLACE):
        index = _hole_for(state, hint, length)
        if index >= 0:
            start = put_region(stack, hint, index, length, kind, 0, 0)
        elif flags & (FIXED | NO_REPLACE):
            log(stack, MMAP, -1, length)
            return np.int64(-1)
        else:
            start, index = highest_hole(state, length)
            start = take_region(stack, start, index, length, kind, 0, 0)
    else:
        start, index = choose_place(stack, length)
        start = take_region(stack, start, index, length, kind, 0, 0)
    if flags & NO_ACCESS:
        add_reserved(stack, start, start + length)
    else:
        change_mapped(stack, length)
    log(stack, MMAP, start, length)
    return start


@cold
def reserve(stack, length, hint):
    """Reserves addresses (PROT_NONE, MAP_NORESERVE), in whole pages."""
    return mmap_at(stack, hint, length, NO_ACCESS | NOT_RESERVED)


@leaf
def _count_mprotect(stack, start, length):
    tally = stack.tally[0]
    tally.mprotect += 1
    tally.mprotect_bytes += length
    log(stack, MPROTECT, start, length)


@cold
def protect(stack, start, length):
    """mprotect(PROT_READ | PROT_WRITE): commits all reserved bytes of a stretch, all of which is mapped."""
    end = end_of_pages(stack.linux, start, length)
    if stack.linux.space[0].transparent:
        change_areas(stack, start, end, WRITABLE, CHARGED)
    change_mapped(stack, release_reserved(stack, start, end))
    _count_mprotect(stack, start, length)


@cold
def unprotect(stack, start, length):
    """mprotect(PROT_NONE): makes a stretch, all of which is mapped, a reserve. Its pages stay resident."""
    end = end_of_pages(stack.linux, start, length)
    if stack.linux.space[0].transparent:
        change_areas(stack, start, end, 0, WRITABLE)
    change_mapped(stack, -add_reserved(stack, start, end))
    _count_mprotect(stack, start, length)


@cold
def brk_behind_guard(stack, end, guard_bytes):
    """The first brk, to `end`, and mmap with FIXED and NO_ACCESS over the first `guard_bytes` of the heap.

    The guard is never counted as mapped, though it is between the two calls.
    """
    tally, start = stack.tally[0], stack.linux.space[0].brk
    change_mapped(stack, -add_reserved(stack, start, start + guard_bytes))
    brk(stack, end)
    if stack.linux.space[0].transparent:
        change_areas(stack, start, start + guard_bytes, 0, WRITABLE)
    tally.mmap += 1
    tally.mmap_bytes += guard_bytes
    log(stack, MMAP, start, guard_bytes)


@cold
def trim(stack, start, mapped_length, length, alignment):
    """Unmaps both ends of a mapping around `length` bytes at a multiple of `alignment`. Returns the address of
    these."""
    aligned = (start + alignment - 1) & -alignment
    end, mapped_end = aligned + length, start + mapped_length
    if aligned > start:
        munmap(stack, start, aligned - start)
    if mapped_end > end:
        munmap(stack, end, mapped_end - end)
    return aligned


@cold
def mmap_aligned(stack, hint, length, alignment, padding, flags):
    """Maps `length` bytes (whole pages) at a multiple of `alignment`, a power of two. Returns the address, or -1.

    Maps memory at the hint, if there is one. If it is not aligned, unmaps it, maps `padding` more bytes without a hint,
    and calls `trim`.
    """
    start = mmap_at(stack, hint, length, flags)
    if start < 0 or start & (alignment - 1) == 0:
        return start
    munmap(stack, start, length)
    start = mmap_at(stack, 0, length + padding, flags)
    return trim(stack, start, length + padding, length, alignment)
