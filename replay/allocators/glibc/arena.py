"""glibc's `_int_malloc`, `_int_free` and `_int_realloc` over one arena.

    fastbins      small chunks that are not merged with their neighbours until malloc_consolidate (none from 2.42 on)
    unsorted      what was freed or left over; a malloc that passes by takes what fits, and puts the rest into its bin
    small bins    one size each, oldest first; large bins sorted by size
    remainder     what is left of a chunk that was cut; `last_remainder` serves small requests one after another
    top           the chunk at the heap's end, which grows

Sizes are in units of 16 bytes throughout. Functions give chunk numbers, or a place of a mapped chunk.
"""

import numpy as np

from replay.allocators.glibc.heaps import extend_heap, heap_trim, new_heap, open_heap
from replay.allocators.glibc.hugetlb import open_region
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
    MAIN_HEAP,
    address_of,
    extend_main,
    map_chunk,
    raise_top,
    systrim,
    top_bytes,
    touch_header,
)
from replay.allocators.glibc.tcache import INACTIVE, LIVE, note_readiness, tcache_get, tcache_put, tcache_room
from replay.allocators.linux import touch
from replay.jit.compiling import cold, inlined, leaf

FASTBINS = 11
"""One a size in units; the largest that `mxfast` allows are 10."""
MAX_ITERATIONS = 10_000
"""MAX_ITERS: chunks that one malloc takes from the unsorted list."""
TRIM_BYTES = 65_536
"""FASTBIN_CONSOLIDATION_THRESHOLD, ATTEMPT_TRIMMING_THRESHOLD."""
NEEDS_TCACHE = -1
"""What `_search` gives where the cache must be made before it can go on, with `found` the chunk in hand."""


@inlined
def _split(state, stack, chunk, wanted):
    """Cuts a chunk; its tail's header is written, which matters where that falls into a hole."""
    tail = split(state, stack, chunk, wanted)
    par = state.par[0]
    if par.holes:
        start = address_of(state, tail)
        is_large = size_of(state.memory, tail) >= par.small_units
        touch(stack, start, start + (6 if is_large else 4) * par.word_size)
    return tail


@inlined
def _keep_remainder(state, arena, remainder, wanted, before, behind):
    """What is left of a chunk that was cut for `wanted` units goes into the unsorted list."""
    memory, par = state.memory, state.par[0]
    entry = memory[np.uint64(remainder)]
    entry.smaller = 0
    set_free(memory, remainder, size_of(memory, remainder))
    link(memory, remainder, before, behind)
    if wanted < par.small_units:
        arena.last_remainder = entry.start


@inlined
def _cut(state, stack, arena, chunk, size, wanted):
    """Takes `wanted` units of a chunk that is in no list; what remains goes to the front of the unsorted list."""
    memory = state.memory
    if size - wanted < state.par[0].min_units:
        set_used(memory, chunk, size)
    else:
        remainder = _split(state, stack, chunk, wanted)
        unsorted = arena.bins + UNSORTED
        _keep_remainder(state, arena, remainder, wanted, unsorted, np.int64(memory[np.uint64(unsorted)].fd))


@inlined
def _from_remainder(state, stack, arena, wanted):
    """What was left over last is cut again, if it is all that is in the unsorted list; or 0."""
    memory, par = state.memory, state.par[0]
    unsorted = arena.bins + UNSORTED
    chunk = np.int64(memory[np.uint64(unsorted)].bk)
    if (
        memory[np.uint64(chunk)].start == arena.last_remainder
        and np.int64(memory[np.uint64(chunk)].bk) == unsorted
        and size_of(memory, chunk) > wanted + par.min_units  # a bin's own record has no size
    ):
        remainder = _split(state, stack, chunk, wanted)
        _keep_remainder(state, arena, remainder, wanted, unsorted, unsorted)
        return chunk
    return np.int64(0)


@inlined
def _sort(state, arena, chunk, size):
    """Puts a chunk from the unsorted list into its bin."""
    par = state.par[0]
    if size < par.small_units:
        index = size + par.small_shift
        link_in_front(state.memory, chunk, arena.bins + index)
        mark_bin(state, arena, index)
    else:
        _sort_large(state, arena, chunk, size)


@cold
def _sort_large(state, arena, chunk, size):
    index = bin_index(size, state.par[0])
    link_by_size(state.memory, chunk, size, arena.bins + index)
    mark_bin(state, arena, index)


@inlined
def _search(state, stack, arena, wanted, cached, resumed):
    """The loop of _int_malloc. `cached`: whether a chunk that fits was put into the cache already."""
    memory, par = state.memory, state.par[0]
    is_small = wanted < par.small_units
    cache_index = wanted - par.min_units
    unsorted = arena.bins + UNSORTED
    unsorted_seen = 0
    has_changed = resumed  # else `_from_remainder` was tried before
    while True:
        iterations = 0
        while True:
            chunk = np.int64(memory[np.uint64(unsorted)].bk)
            if chunk == unsorted:
                break
            before = np.int64(memory[np.uint64(chunk)].bk)
            if has_changed and before == unsorted and is_small:
                last = _from_remainder(state, stack, arena, wanted)
                if last:
                    return last
            has_changed = True
            size = size_of(memory, chunk)
            memory[np.uint64(unsorted)].bk = before
            memory[np.uint64(before)].fd = unsorted
            if size == wanted:
                set_used(memory, chunk, size)
                if par.lazy_tcache and par.tcache == INACTIVE and not resumed:
                    par.found = chunk
                    return np.int64(NEEDS_TCACHE)
                if not tcache_room(state, cache_index):
                    return chunk
                tcache_put(state, chunk, cache_index)
                cached = True
                continue
            _sort(state, arena, chunk, size)
            unsorted_seen += 1
            if cached and 0 < par.unsorted_limit < unsorted_seen:
                return tcache_get(state, cache_index)
            iterations += 1
            if iterations >= MAX_ITERATIONS:
                break
        if cached:
            return tcache_get(state, cache_index)
        index = bin_index(wanted, par)
        if not is_small:
            head = arena.bins + index
            chunk = np.int64(memory[np.uint64(head)].fd)
            if chunk != head and size_of(memory, chunk) >= wanted:
                chunk = np.int64(memory[np.uint64(chunk)].larger)
                size = size_of(memory, chunk)
                while size < wanted:
                    chunk = np.int64(memory[np.uint64(chunk)].larger)
                    size = size_of(memory, chunk)
                # The first of a size is in the skip list; the second is cheaper to take.
                second = np.int64(memory[np.uint64(chunk)].fd)
                if chunk != np.int64(memory[np.uint64(head)].bk) and size_of(memory, second) == size:
                    chunk = second
                unlink_chunk(memory, chunk, par)
                _cut(state, stack, arena, chunk, size, wanted)
                return chunk
        index = next_bin(state, arena, index + 1)
        if index < NBINS:
            chunk = np.int64(memory[np.uint64(arena.bins + index)].bk)
            size = size_of(memory, chunk)
            unlink_chunk(memory, chunk, par)
            _cut(state, stack, arena, chunk, size, wanted)
            return chunk
        size = size_of(memory, arena.top)
        if size < wanted + par.min_units:
            if arena.have_fast:
                consolidate(state, stack, arena)
                has_changed = True
                continue
            return _sysmalloc(state, stack, arena, wanted)
        return _from_top(state, stack, arena, wanted)


@cold
def _sysmalloc(state, stack, arena, wanted):
    """Top is too small: a mapping of its own, or a longer heap, or another one. Gives 0 where that was in vain."""
    par = state.par[0]
    if (wanted << UNIT_SHIFT) >= par.mmap_threshold and par.mmaps < par.mmap_max:
        return map_chunk(state, stack, wanted, par.hp_bytes)
    if arena.heap == MAIN_HEAP:
        if par.hp_bytes:
            _add_region(state, stack, arena, wanted)
        else:
            extend_main(state, stack, arena, wanted)
    elif not extend_heap(state, stack, arena, wanted):
        number = new_heap(state, stack, ((wanted + par.min_units) << UNIT_SHIFT) + par.heap_header)
        if number == 0:
            return map_chunk(state, stack, wanted, 0)
        _add_heap(state, stack, arena, number)
        # What was left of the old one was freed, and that may have brought trimming, of the new one first of all.
        if size_of(state.memory, arena.top) < wanted + par.min_units:
            return np.int64(0)
    return _from_top(state, stack, arena, wanted)


@leaf
def _add_heap(state, stack, arena, number):
    """The arena goes on in another heap. What is left of the last one is freed, but for a fence at its end."""
    rest, full = arena.top, state.heaps[np.uint64(arena.heap)]
    open_heap(state, stack, arena, number, state.par[0].heap_header)
    touch(stack, state.heaps[number].address, state.heaps[number].address + state.par[0].heap_header)
    full.fence = _fence(state, stack, rest, full.end)
    if full.fence != rest:
        _free_rest(state, stack, arena, rest)


@cold
def _add_region(state, stack, arena, wanted):
    """The same for the main arena, which goes on in another mapping."""
    memory, rest, end = state.memory, arena.top, state.heaps[MAIN_HEAP].end
    open_region(state, stack, arena, wanted)
    if rest != UNSORTED:
        fence = _fence(state, stack, rest, end)
        memory[np.uint64(fence)].behind, memory[np.uint64(arena.top)].before = arena.top, fence
        if fence != rest:
            _free_rest(state, stack, arena, rest)


@leaf
def _fence(state, stack, rest, end):
    """The chunk that keeps the end of a full heap from what follows: cut off what is left of top, or all of that."""
    par = state.par[0]
    units = size_of(state.memory, rest) - par.min_units
    touch(stack, end - (par.min_units << UNIT_SHIFT), end)
    return rest if units < par.min_units else split(state, stack, rest, units)


@leaf
def _free_rest(state, stack, arena, rest):
    start = address_of(state, rest)
    touch(stack, start, start + 6 * state.par[0].word_size)
    state.par[0].holes = 1
    give_back(state, stack, arena, rest, size_of(state.memory, rest))


@inlined
def _from_top(state, stack, arena, wanted):
    par = state.par[0]
    chunk = arena.top
    arena.top = split(state, stack, chunk, wanted)
    if not par.raised_by_caller:
        raise_top(state, stack, arena)
    return chunk


@inlined
def _from_fastbin(state, arena, wanted):
    """The first chunk of the fastbin of just this size, or 0."""
    slot = np.uint64(arena.fastbins + wanted)
    chunk = state.fastbins[slot]
    if chunk:
        state.fastbins[slot] = state.memory[np.uint64(chunk)].fd
    return chunk


@inlined
def _from_small_bin(state, arena, wanted):
    """The last chunk of the small bin of just this size, or 0."""
    memory, head = state.memory, arena.bins + wanted + state.par[0].small_shift
    if np.int64(memory[np.uint64(head)].bk) == head:
        return np.int64(0)
    chunk = unlink_last(memory, head)
    set_used(memory, chunk, wanted)
    return chunk


@cold
def _stash_fast(state, arena, wanted):
    """More chunks of the fastbin's size go into the cache."""
    index = wanted - state.par[0].min_units
    while state.fastbins[np.uint64(arena.fastbins + wanted)] and tcache_room(state, index):
        tcache_put(state, _from_fastbin(state, arena, wanted), index)


@cold
def _stash_small(state, stack, arena, wanted):
    """More chunks of the small bin go into the cache."""
    memory, par = state.memory, state.par[0]
    if par.lazy_tcache and par.tcache == INACTIVE:
        make_tcache(state, stack, arena, par.tcache_units_inside)
    index, head = wanted - par.min_units, arena.bins + wanted + par.small_shift
    while np.int64(memory[np.uint64(head)].bk) != head and tcache_room(state, index):
        tcache_put(state, _from_small_bin(state, arena, wanted), index)


@cold
def make_tcache(state, stack, arena, wanted):
    """tcache_init: the cache's own chunk; while it is allocated, nothing is cached."""
    par = state.par[0]
    if not par.lazy_tcache or par.tcache_count:
        chunk = _from_fastbin(state, arena, wanted) if wanted <= par.max_fast else np.int64(0)
        if chunk == 0 and wanted < par.small_units:
            chunk = _from_small_bin(state, arena, wanted)
        if chunk == 0:
            chunk = _search(state, stack, arena, wanted, False, True)
        state.threads[par.thread].cache_chunk = chunk
    par.tcache = LIVE
    note_readiness(par)


@inlined
def int_malloc(state, stack, arena, wanted):
    """_int_malloc: a chunk of `wanted` units, or 0 if this arena has none."""
    par = state.par[0]
    if wanted <= par.max_fast:
        chunk = _from_fastbin(state, arena, wanted)
        if chunk:
            if state.fastbins[np.uint64(arena.fastbins + wanted)]:
                _stash_fast(state, arena, wanted)
            return chunk
    if wanted < par.small_units:
        chunk = _from_small_bin(state, arena, wanted)
        if chunk:
            if wanted - par.min_units < par.tcache_bins:
                _stash_small(state, stack, arena, wanted)
            return chunk
        chunk = _from_remainder(state, stack, arena, wanted)
        if chunk:
            return chunk
    elif arena.have_fast:
        consolidate(state, stack, arena)
    return _search_all(state, stack, arena, wanted)


@cold
def call_int_malloc(state, stack, arena, wanted):
    """The same for all but the most frequent caller: a copy in each would be too much."""
    return int_malloc(state, stack, arena, wanted)


@cold
def _search_all(state, stack, arena, wanted):
    """The rest of _int_malloc. Where it frees what fits, the cache may have to be made first."""
    par = state.par[0]
    resumed = False
    while True:
        chunk = _search(state, stack, arena, wanted, resumed, resumed)
        if chunk != NEEDS_TCACHE:
            return chunk
        found = par.found
        make_tcache(state, stack, arena, par.tcache_units_inside)
        index = wanted - par.min_units
        if not tcache_room(state, index):
            return found
        tcache_put(state, found, index)
        resumed = True


@leaf
def consolidate(state, stack, arena):
    """malloc_consolidate: the fastbins' chunks are merged with their neighbours, into the unsorted list or top."""
    memory = state.memory
    arena.have_fast = 0
    for slot in range(arena.fastbins, arena.fastbins + FASTBINS):
        chunk = state.fastbins[slot]
        state.fastbins[slot] = 0
        while chunk:
            following = np.int64(memory[np.uint64(chunk)].fd)
            _merge(state, arena, chunk, False)
            chunk = following


@inlined
def _merge(state, arena, chunk, sorts_small):
    """Merges a chunk with free neighbours and puts it into the unsorted list, its small bin, or top; gives its size."""
    memory, par = state.memory, state.par[0]
    before = np.int64(memory[np.uint64(chunk)].before)
    if is_free(memory, before):
        unlink_chunk(memory, before, par)
        absorb_behind(state, before)
        chunk = before
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if behind == arena.top:
        absorb_behind(state, chunk)
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        arena.top = chunk
        return size
    if is_free(memory, behind):
        unlink_chunk(memory, behind, par)
        absorb_behind(state, chunk)
    size = size_of(memory, chunk)
    set_free(memory, chunk, size)
    memory[np.uint64(chunk)].smaller = 0
    if sorts_small and size < par.small_units:
        index = size + par.small_shift
        link_in_front(memory, chunk, arena.bins + index)
        mark_bin(state, arena, index)
    else:
        link_in_front(memory, chunk, arena.bins + UNSORTED)
    return size


@inlined
def free_chunk(state, stack, arena, chunk, size):
    """_int_free behind the cache: to a fastbin, or merged; a large gap at the end goes back to the kernel."""
    par = state.par[0]
    if size <= par.max_fast:
        slot = np.uint64(arena.fastbins + size)
        state.memory[np.uint64(chunk)].fd = state.fastbins[slot]
        state.fastbins[slot] = chunk
        arena.have_fast = 1
        return
    _merge_and_trim(state, stack, arena, chunk)


@inlined
def _merge_and_trim(state, stack, arena, chunk):
    size = _merge(state, arena, chunk, state.par[0].sorts_small)
    if (size << UNIT_SHIFT) >= TRIM_BYTES:
        _trim(state, stack, arena)


@cold
def merge_chunk(state, stack, arena, chunk):
    """_int_free_merge_chunk: past cache and fastbins."""
    _merge_and_trim(state, stack, arena, chunk)


@cold
def _trim(state, stack, arena):
    """Much is free in one piece: the fastbins are merged, and what is free at the heap's end may go back."""
    if arena.have_fast:
        consolidate(state, stack, arena)
    if arena.heap != MAIN_HEAP:
        heap_trim(state, stack, arena)
    elif top_bytes(state, arena) >= state.par[0].trim_threshold:
        systrim(state, stack, arena, state.par[0].top_pad)


@cold
def call_free_chunk(state, stack, arena, chunk, size):
    """The same for all but the most frequent caller."""
    free_chunk(state, stack, arena, chunk, size)


@inlined
def _give_back(state, stack, arena, chunk, size):
    """What malloc itself has left over: through the cache up to 2.41, past it from then on."""
    index = size - state.par[0].min_units
    if not state.par[0].lazy_tcache and tcache_room(state, index):
        tcache_put(state, chunk, index)
    else:
        if state.par[0].perturb:
            perturb(state, stack, chunk, size << UNIT_SHIFT)
        free_chunk(state, stack, arena, chunk, size)


@cold
def give_back(state, stack, arena, chunk, size):
    """The same for all but the most frequent caller."""
    _give_back(state, stack, arena, chunk, size)


@cold
def perturb(state, stack, chunk, length):
    """alloc_perturb, free_perturb: all of the chunk is written to. What programs ask for and free is so in any case."""
    start, header = address_of(state, chunk), state.par[0].header
    if length > header:
        touch(stack, start + header, start + length)


@cold
def int_realloc(state, stack, arena, chunk, old_size, wanted):
    """_int_realloc: where it is, into top, into the free chunk behind, or elsewhere; 0 if there is no room for it."""
    memory, par = state.memory, state.par[0]
    result, left, left_size = chunk, np.int64(0), np.int64(0)
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if old_size < wanted:
        both = old_size + size_of(memory, behind)
        if behind == arena.top and both >= wanted + par.min_units:
            absorb_behind(state, chunk)
            arena.top = split(state, stack, chunk, wanted)
            raise_top(state, stack, arena)
            return chunk
        if behind != arena.top and is_free(memory, behind) and both >= wanted:
            unlink_chunk(memory, behind, par)
        else:
            par.raised_by_caller = 1
            other = call_int_malloc(state, stack, arena, wanted)
            par.raised_by_caller = 0
            if other == 0:
                return other
            if other != np.int64(memory[np.uint64(chunk)].behind):
                raise_top(state, stack, arena)
                result, left, left_size = other, chunk, old_size
            else:
                # It lies right behind: both are one block now, and what is too much of it is never written to, though
                # the header of top behind all that was.
                touch_header(state, stack, arena)
                if par.perturb:
                    perturb(state, stack, other, wanted << UNIT_SHIFT)
        if result == chunk:
            absorb_behind(state, chunk)
    if result == chunk:
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        if size - wanted >= par.min_units:
            left, left_size = _split(state, stack, chunk, wanted), size - wanted
    if left:
        _give_back(state, stack, arena, left, left_size)
    if old_size < wanted and result == chunk:
        raise_top(state, stack, arena)
    return result
