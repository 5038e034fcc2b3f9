"""madvise: releases pages, frees them lazily, and allows or forbids huge pages."""

from replay.allocators._stack import log
from replay.allocators.linux.areas import (
    ADVISED,
    NOT_HUGE,
    change_areas,
    empty_ranges,
    is_hugetlb,
    split_partly_covered,
)
from replay.allocators.linux.calls import MADVISE
from replay.allocators.linux.pages import drop_pages, mark_lazy
from replay.allocators.linux.tables import end_of_pages
from replay.jit.compiling import cold, leaf


@leaf
def _count_madvise(stack, start, length):
    tally = stack.tally[0]
    tally.madvise += 1
    tally.madvise_bytes += length
    log(stack, MADVISE, start, length)


@cold
def dontneed(stack, start, length):
    """MADV_DONTNEED: releases pages; addresses stay mapped. Of reserved huge pages, releases whole ones from `start`
    on."""
    state = stack.linux
    _count_madvise(stack, start, length)
    if is_hugetlb(state, start):
        huge = state.space[0].huge_page_size
        length = 0 if start & (huge - 1) else length & -huge
        if length == 0:
            return
    end = end_of_pages(state, start, length)
    drop_pages(stack, start, end)
    if state.space[0].transparent:
        empty_ranges(state, start, end)


@cold
def free_lazily(stack, start, length):
    """MADV_FREE: pages stay resident until memory is short, which is not simulated.

    A write makes a page normal again, so a model must `touch` memory that it reuses. For reserved huge pages, Linux
    rejects the call, and nothing changes.
    """
    _count_madvise(stack, start, length)
    if is_hugetlb(stack.linux, start):
        return
    end = end_of_pages(stack.linux, start, length)
    if stack.linux.space[0].transparent:
        split_partly_covered(stack.linux, start, end)
    mark_lazy(stack, start, end)
    space = stack.linux.space[0]
    space.lazy_bytes_peak = max(space.lazy_bytes_peak, space.lazy_bytes)


@cold
def advise_huge_pages(stack, start, length):
    """MADV_HUGEPAGE: allows huge pages for first touches, unless transparent huge pages are `never`."""
    if stack.linux.space[0].transparent:
        change_areas(stack, start, end_of_pages(stack.linux, start, length), ADVISED, NOT_HUGE)
    _count_madvise(stack, start, length)


@cold
def advise_small_pages(stack, start, length):
    """MADV_NOHUGEPAGE: forbids huge pages for first touches. Existing huge pages stay."""
    if stack.linux.space[0].transparent:
        change_areas(stack, start, end_of_pages(stack.linux, start, length), NOT_HUGE, ADVISED)
    _count_madvise(stack, start, length)
