"""glibc's `_int_malloc`, `_int_free` and `_int_realloc` over one arena, and the thread's cache before them.

    tcache        per size, a few chunks freed last; served and refilled without a look at the arena
    fastbins      small chunks that are not merged with their neighbours until malloc_consolidate (none from 2.42 on)
    unsorted      what was freed or left over; a malloc that passes by takes what fits, and puts the rest into its bin
    small bins    one size each, oldest first; large bins sorted by size
    remainder     what is left of a chunk that was cut; `last_remainder` serves small requests one after another
    top           the chunk at the heap's end, which grows

Sizes are in units of 16 bytes throughout. Functions give chunk numbers, or a place of a mapped chunk.
"""

import numpy as np

from replay.allocators.glibc.memory import (
    NBINS,
    UNIT_SHIFT,
    UNSORTED,
    absorb_behind,
    bin_index,
    is_free,
    link,
    link_by_size,
    link_in_front,
    mark_bin,
    next_bin,
    set_free,
    set_used,
    size_of,
    split,
    unlink_chunk,
    unlink_last,
)
from replay.allocators.glibc.system import (
    address_of,
    extend_top,
    map_chunk,
    raise_top,
    systrim,
    top_bytes,
    touch_header,
)
from replay.allocators.kernel import touch
from replay.compiled import cold, inlined, leaf

MAX_ITERATIONS = 10_000
"""MAX_ITERS: chunks that one malloc takes from the unsorted list."""
TRIM_BYTES = 65_536
"""FASTBIN_CONSOLIDATION_THRESHOLD, ATTEMPT_TRIMMING_THRESHOLD."""
NEEDS_TCACHE = -1
"""What `_search` gives where the cache must be made before it can go on, with `heap.found` the chunk in hand."""
INACTIVE, LIVE = 0, 1
"""`heap.tcache`: not made yet; made."""


@inlined
def tcache_room(state, index):
    """Whether the cache takes another chunk of this size."""
    heap = state.heap[0]
    return heap.tcache == LIVE and index < heap.tcache_bins and state.counts[np.uint64(index)] < heap.tcache_count


@inlined
def tcache_put(state, chunk, index):
    """The chunk becomes the first of its size."""
    state.memory[np.uint64(chunk)].fd = state.entries[np.uint64(index)]
    state.entries[np.uint64(index)] = chunk
    state.counts[np.uint64(index)] += 1


@inlined
def tcache_get(state, index):
    """The first of its size, of which there is one."""
    chunk = state.entries[np.uint64(index)]
    state.entries[np.uint64(index)] = state.memory[np.uint64(chunk)].fd
    state.counts[np.uint64(index)] -= 1
    return chunk


@inlined
def _split(state, stack, chunk, wanted):
    """Cuts a chunk; its tail's header is written, which matters where that falls into a hole."""
    tail = split(state, stack, chunk, wanted)
    heap = state.heap[0]
    if heap.holes:
        start = address_of(state, tail)
        is_large = size_of(state.memory, tail) >= heap.small_units
        touch(stack, start, start + (6 if is_large else 4) * heap.word_size)
    return tail


@inlined
def _keep_remainder(state, remainder, wanted, before, behind):
    """What is left of a chunk that was cut for `wanted` units goes into the unsorted list."""
    memory, heap = state.memory, state.heap[0]
    entry = memory[np.uint64(remainder)]
    entry.smaller = 0
    set_free(memory, remainder, size_of(memory, remainder))
    link(memory, remainder, before, behind)
    if wanted < heap.small_units:
        heap.last_remainder = entry.start


@inlined
def _cut(state, stack, chunk, size, wanted):
    """Takes `wanted` units of a chunk that is in no list; what remains goes to the front of the unsorted list."""
    memory = state.memory
    if size - wanted < state.heap[0].min_units:
        set_used(memory, chunk, size)
    else:
        remainder = _split(state, stack, chunk, wanted)
        _keep_remainder(state, remainder, wanted, np.int64(UNSORTED), np.int64(memory[UNSORTED].fd))


@leaf
def _sort(state, chunk, size):
    """Puts a chunk from the unsorted list into its bin."""
    memory, heap = state.memory, state.heap[0]
    index = bin_index(size, heap)
    if size < heap.small_units:
        link_in_front(memory, chunk, index)
    else:
        link_by_size(memory, chunk, size, index)
    mark_bin(state.binmap, index)


@inlined
def _search(state, stack, wanted, cached, resumed):
    """The loop of _int_malloc. `cached`: whether a chunk that fits was put into the cache already."""
    memory, heap = state.memory, state.heap[0]
    is_small = wanted < heap.small_units
    cache_index = wanted - heap.min_units
    unsorted_seen = 0
    while True:
        iterations = 0
        while True:
            chunk = np.int64(memory[UNSORTED].bk)
            if chunk == UNSORTED:
                break
            before = np.int64(memory[np.uint64(chunk)].bk)
            size = size_of(memory, chunk)
            if (
                is_small
                and before == UNSORTED
                and memory[np.uint64(chunk)].start == heap.last_remainder
                and size > wanted + heap.min_units
            ):
                remainder = _split(state, stack, chunk, wanted)
                _keep_remainder(state, remainder, wanted, np.int64(UNSORTED), np.int64(UNSORTED))
                return chunk
            memory[UNSORTED].bk = before
            memory[np.uint64(before)].fd = UNSORTED
            if size == wanted:
                set_used(memory, chunk, size)
                if heap.lazy_tcache and heap.tcache == INACTIVE and not resumed:
                    heap.found = chunk
                    return np.int64(NEEDS_TCACHE)
                if not tcache_room(state, cache_index):
                    return chunk
                tcache_put(state, chunk, cache_index)
                cached = True
                continue
            _sort(state, chunk, size)
            unsorted_seen += 1
            if cached and 0 < heap.unsorted_limit < unsorted_seen:
                return tcache_get(state, cache_index)
            iterations += 1
            if iterations >= MAX_ITERATIONS:
                break
        if cached:
            return tcache_get(state, cache_index)
        index = bin_index(wanted, heap)
        if not is_small:
            chunk = np.int64(memory[np.uint64(index)].fd)
            if chunk != index and size_of(memory, chunk) >= wanted:
                chunk = np.int64(memory[np.uint64(chunk)].larger)
                size = size_of(memory, chunk)
                while size < wanted:
                    chunk = np.int64(memory[np.uint64(chunk)].larger)
                    size = size_of(memory, chunk)
                # The first of a size is in the skip list; the second is cheaper to take.
                second = np.int64(memory[np.uint64(chunk)].fd)
                if chunk != np.int64(memory[np.uint64(index)].bk) and size_of(memory, second) == size:
                    chunk = second
                unlink_chunk(memory, chunk, heap)
                _cut(state, stack, chunk, size, wanted)
                return chunk
        index = next_bin(memory, state.binmap, index + 1)
        if index < NBINS:
            chunk = np.int64(memory[np.uint64(index)].bk)
            size = size_of(memory, chunk)
            unlink_chunk(memory, chunk, heap)
            _cut(state, stack, chunk, size, wanted)
            return chunk
        size = size_of(memory, heap.top)
        if size < wanted + heap.min_units:
            if heap.have_fast:
                consolidate(state, stack)
                continue
            if (wanted << UNIT_SHIFT) >= heap.mmap_threshold and heap.mmaps < heap.mmap_max:
                return map_chunk(state, stack, wanted)
            extend_top(state, stack, wanted)
        return _from_top(state, stack, wanted)


@inlined
def _from_top(state, stack, wanted):
    heap = state.heap[0]
    chunk = heap.top
    heap.top = split(state, stack, chunk, wanted)
    if not heap.in_realloc:
        raise_top(state, stack)
    return chunk


@leaf
def _stash_fast(state, wanted):
    """More chunks of the fastbin's size go into the cache."""
    memory, index = state.memory, wanted - state.heap[0].min_units
    while state.fastbins[wanted] and tcache_room(state, index):
        chunk = state.fastbins[wanted]
        state.fastbins[wanted] = memory[np.uint64(chunk)].fd
        tcache_put(state, chunk, index)


@leaf
def _stash_small(state, wanted, head):
    """More chunks of the small bin go into the cache."""
    memory, index = state.memory, wanted - state.heap[0].min_units
    while np.int64(memory[np.uint64(head)].bk) != head and tcache_room(state, index):
        chunk = unlink_last(memory, head)
        set_used(memory, chunk, wanted)
        tcache_put(state, chunk, index)


@inlined
def _from_lists(state, stack, wanted):
    """A chunk from the fastbin or the small bin of just this size, or 0."""
    memory, heap = state.memory, state.heap[0]
    if wanted <= heap.max_fast and state.fastbins[wanted]:
        chunk = state.fastbins[wanted]
        state.fastbins[wanted] = memory[np.uint64(chunk)].fd
        return chunk
    if wanted < heap.small_units:
        head = wanted + heap.small_shift
        if np.int64(memory[np.uint64(head)].bk) != head:
            chunk = unlink_last(memory, head)
            set_used(memory, chunk, wanted)
            return chunk
    elif heap.have_fast:
        consolidate(state, stack)
    return np.int64(0)


@cold
def make_tcache(state, stack, wanted):
    """tcache_init: the cache's own chunk; while it is allocated, nothing is cached."""
    heap = state.heap[0]
    if heap.lazy_tcache and heap.tcache_count == 0:
        heap.tcache = LIVE
        return
    if _from_lists(state, stack, wanted) == 0:
        _search(state, stack, wanted, False, True)
    heap.tcache = LIVE


@cold
def int_malloc(state, stack, wanted):
    """_int_malloc: a chunk of `wanted` units. Up to 2.41 the cache is made first of all."""
    heap = state.heap[0]
    if heap.tcache == INACTIVE and not heap.lazy_tcache:
        make_tcache(state, stack, heap.tcache_units)
    in_fastbin = wanted <= heap.max_fast and state.fastbins[wanted] != 0
    chunk = _from_lists(state, stack, wanted)
    if chunk:
        cacheable = wanted - heap.min_units < heap.tcache_bins
        if in_fastbin:
            _stash_fast(state, wanted)
        elif cacheable:
            if heap.lazy_tcache and heap.tcache == INACTIVE:
                make_tcache(state, stack, heap.tcache_units_inside)
            _stash_small(state, wanted, wanted + heap.small_shift)
        return chunk
    resumed = False
    while True:
        chunk = _search(state, stack, wanted, resumed, resumed)
        if chunk != NEEDS_TCACHE:
            return chunk
        found = heap.found
        make_tcache(state, stack, heap.tcache_units_inside)
        index = wanted - heap.min_units
        if not tcache_room(state, index):
            return found
        tcache_put(state, found, index)
        resumed = True


@leaf
def consolidate(state, stack):
    """malloc_consolidate: the fastbins' chunks are merged with their neighbours, into the unsorted list or top."""
    memory, heap = state.memory, state.heap[0]
    heap.have_fast = 0
    for index in range(state.fastbins.shape[0]):
        chunk = state.fastbins[index]
        state.fastbins[index] = 0
        while chunk:
            following = np.int64(memory[np.uint64(chunk)].fd)
            _merge(state, chunk, False)
            chunk = following


@inlined
def _merge(state, chunk, sorts_small):
    """Merges a chunk with free neighbours and puts it into the unsorted list, its small bin, or top; gives its size."""
    memory, heap = state.memory, state.heap[0]
    before = np.int64(memory[np.uint64(chunk)].before)
    if is_free(memory, before):
        unlink_chunk(memory, before, heap)
        absorb_behind(state, before)
        chunk = before
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if behind == heap.top:
        absorb_behind(state, chunk)
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        heap.top = chunk
        return size
    if is_free(memory, behind):
        unlink_chunk(memory, behind, heap)
        absorb_behind(state, chunk)
    size = size_of(memory, chunk)
    set_free(memory, chunk, size)
    memory[np.uint64(chunk)].smaller = 0
    if sorts_small and size < heap.small_units:
        index = size + heap.small_shift
        link_in_front(memory, chunk, index)
        mark_bin(state.binmap, index)
    else:
        link_in_front(memory, chunk, UNSORTED)
    return size


@leaf
def free_chunk(state, stack, chunk, size):
    """_int_free behind the cache: to a fastbin, or merged; a large gap at the end goes back to the kernel."""
    heap = state.heap[0]
    if size <= heap.max_fast:
        state.memory[np.uint64(chunk)].fd = state.fastbins[size]
        state.fastbins[size] = chunk
        heap.have_fast = 1
        return
    size = _merge(state, chunk, heap.sorts_small)
    if (size << UNIT_SHIFT) >= TRIM_BYTES:
        if heap.have_fast:
            consolidate(state, stack)
        if top_bytes(state, stack) >= heap.trim_threshold:
            systrim(state, stack, heap.top_pad)


@inlined
def _free_in_realloc(state, stack, chunk, size):
    """What realloc gives back: through the cache up to 2.41, past it from then on."""
    index = size - state.heap[0].min_units
    if not state.heap[0].lazy_tcache and tcache_room(state, index):
        tcache_put(state, chunk, index)
    else:
        free_chunk(state, stack, chunk, size)


@cold
def int_realloc(state, stack, chunk, old_size, wanted):
    """_int_realloc: where it is, into top, into the free chunk behind, or elsewhere."""
    memory, heap = state.memory, state.heap[0]
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if old_size < wanted:
        both = old_size + size_of(memory, behind)
        if behind == heap.top and both >= wanted + heap.min_units:
            absorb_behind(state, chunk)
            heap.top = split(state, stack, chunk, wanted)
            raise_top(state, stack)
            return chunk
        if behind != heap.top and is_free(memory, behind) and both >= wanted:
            unlink_chunk(memory, behind, heap)
        else:
            heap.in_realloc = 1
            other = int_malloc(state, stack, wanted)
            heap.in_realloc = 0
            if other != np.int64(memory[np.uint64(chunk)].behind):
                raise_top(state, stack)
                _free_in_realloc(state, stack, chunk, old_size)
                return other
            # It lies right behind: both are one block now, and what is too much of it is never written to, though
            # the header of top behind all that was.
            touch_header(state, stack)
        absorb_behind(state, chunk)
    size = size_of(memory, chunk)
    set_used(memory, chunk, size)
    if size - wanted >= heap.min_units:
        remainder = _split(state, stack, chunk, wanted)
        _free_in_realloc(state, stack, remainder, size - wanted)
    raise_top(state, stack)
    return chunk
