"""glibc's `_int_malloc`, `_int_free` and `_int_realloc` over one arena.

fastbins      small chunks that are not merged with their neighbours before malloc_consolidate (until 2.41) unsorted
freed chunks and remainders. malloc searches this list; it moves chunks that do not fit into their bins small bins
chunks of one size each; the oldest is used first. Large bins are sorted by size remainder     the rest of a chunk that
was split; small requests in sequence are split from `last_remainder` top           the chunk at the end of the heap

All sizes are in units of 16 bytes. Functions return the index of a chunk, or the place of a mapped chunk.
"""

import numpy as np

from replay.allocators.glibc.heaps import grow_heap, heap_trim, new_heap, open_heap
from replay.allocators.glibc.hugetlb import open_region
from replay.allocators.glibc.memory import (
    NBINS,
    UNIT_SHIFT,
    UNSORTED,
    bin_index,
    is_free,
    link,
    link_at_front,
    link_by_size,
    mark_bin,
    merge_next,
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
    systrim,
    top_bytes,
    touch_header,
    touch_to_top,
)
from replay.allocators.glibc.tcache import INACTIVE, LIVE, tcache_get, tcache_put, tcache_room, update_is_ready
from replay.allocators.linux import touch
from replay.jit.compiling import cold, inlined, leaf

FASTBINS = 11
"""One fastbin for each size in units. The largest size that `mxfast` allows is 10."""
MAX_ITERATIONS = 10_000
"""MAX_ITERS: the number of chunks that one malloc takes from the unsorted list."""
TRIM_BYTES = 65_536
"""FASTBIN_CONSOLIDATION_THRESHOLD; ATTEMPT_TRIMMING_THRESHOLD in later versions."""
NEEDS_TCACHE = -1
"""Result of `_search` if the tcache must be created before it can continue. `par.found` is then the chunk it found."""


@inlined
def _split(state, stack, chunk, nb):
    """Splits a chunk and returns the tail. Touches the tail's header if the heap has holes."""
    tail = split(state, stack, chunk, nb)
    par = state.par[0]
    if par.holes:
        start = address_of(state, tail)
        is_large = size_of(state.memory, tail) >= par.small_units
        touch(stack, start, start + (6 if is_large else 4) * par.word_size)
    return tail


@inlined
def _keep_remainder(state, arena, remainder, nb, before, behind):
    """Puts the remainder of a chunk that was split for `nb` units into the unsorted list, between two entries."""
    memory, par = state.memory, state.par[0]
    entry = memory[np.uint64(remainder)]
    entry.smaller = 0
    set_free(memory, remainder, size_of(memory, remainder))
    link(memory, remainder, before, behind)
    if nb < par.small_units:
        arena.last_remainder = entry.start


@inlined
def _cut(state, stack, arena, chunk, size, nb):
    """Splits `nb` units from a chunk that is in no list, and puts the remainder at the front of the unsorted list."""
    memory = state.memory
    if size - nb < state.par[0].min_units:
        set_used(memory, chunk, size)
    else:
        remainder = _split(state, stack, chunk, nb)
        unsorted = arena.bins + UNSORTED
        _keep_remainder(state, arena, remainder, nb, unsorted, np.int64(memory[np.uint64(unsorted)].fd))


@inlined
def _from_remainder(state, stack, arena, nb):
    """Splits the last remainder if it is the only chunk in the unsorted list and large enough. Returns the chunk, or
    0."""
    memory, par = state.memory, state.par[0]
    unsorted = arena.bins + UNSORTED
    chunk = np.int64(memory[np.uint64(unsorted)].bk)
    if (
        memory[np.uint64(chunk)].start == arena.last_remainder
        and np.int64(memory[np.uint64(chunk)].bk) == unsorted
        and size_of(memory, chunk) > nb + par.min_units  # the record of an empty bin has size 0
    ):
        remainder = _split(state, stack, chunk, nb)
        _keep_remainder(state, arena, remainder, nb, unsorted, unsorted)
        return chunk
    return np.int64(0)


@inlined
def _place_in_bin(state, arena, chunk, size):
    """Puts a chunk of the unsorted list into its bin."""
    par = state.par[0]
    if size < par.small_units:
        index = size + par.small_shift
        link_at_front(state.memory, chunk, arena.bins + index)
        mark_bin(state, arena, index)
    else:
        _place_in_large_bin(state, arena, chunk, size)


@cold
def _place_in_large_bin(state, arena, chunk, size):
    index = bin_index(size, state.par[0])
    link_by_size(state.memory, chunk, size, arena.bins + index)
    mark_bin(state, arena, index)


@inlined
def _search(state, stack, arena, nb, cached, resumed):
    """The main loop of _int_malloc. Returns a chunk of `nb` units, 0 or NEEDS_TCACHE.

    `cached`: whether a chunk of this size was put into the tcache. `resumed`: whether the tcache exists, or is being
    created.
    """
    memory, par = state.memory, state.par[0]
    is_small = nb < par.small_units
    cache_index = nb - par.min_units
    unsorted = arena.bins + UNSORTED
    unsorted_seen = 0
    has_changed = resumed  # if False, the caller has tried `_from_remainder`
    while True:
        iterations = 0
        while True:
            chunk = np.int64(memory[np.uint64(unsorted)].bk)
            if chunk == unsorted:
                break
            before = np.int64(memory[np.uint64(chunk)].bk)
            if has_changed and before == unsorted and is_small:
                remainder = _from_remainder(state, stack, arena, nb)
                if remainder:
                    return remainder
            has_changed = True
            size = size_of(memory, chunk)
            memory[np.uint64(unsorted)].bk = before
            memory[np.uint64(before)].fd = unsorted
            if size == nb:
                set_used(memory, chunk, size)
                if par.lazy_tcache and par.tcache == INACTIVE and not resumed:
                    par.found = chunk
                    return np.int64(NEEDS_TCACHE)
                if not tcache_room(state, cache_index):
                    return chunk
                tcache_put(state, chunk, cache_index)
                cached = True
                continue
            _place_in_bin(state, arena, chunk, size)
            unsorted_seen += 1
            if cached and 0 < par.unsorted_limit < unsorted_seen:
                return tcache_get(state, cache_index)
            iterations += 1
            if iterations >= MAX_ITERATIONS:
                break
        if cached:
            return tcache_get(state, cache_index)
        index = bin_index(nb, par)
        if not is_small:
            head = arena.bins + index
            chunk = np.int64(memory[np.uint64(head)].fd)
            if chunk != head and size_of(memory, chunk) >= nb:
                chunk = np.int64(memory[np.uint64(chunk)].larger)
                size = size_of(memory, chunk)
                while size < nb:
                    chunk = np.int64(memory[np.uint64(chunk)].larger)
                    size = size_of(memory, chunk)
                # The first chunk of a size is in the skip list. Unlinking the second one is cheaper.
                second = np.int64(memory[np.uint64(chunk)].fd)
                if chunk != np.int64(memory[np.uint64(head)].bk) and size_of(memory, second) == size:
                    chunk = second
                unlink_chunk(memory, chunk, par)
                _cut(state, stack, arena, chunk, size, nb)
                return chunk
        index = next_bin(state, arena, index + 1)
        if index < NBINS:
            chunk = np.int64(memory[np.uint64(arena.bins + index)].bk)
            size = size_of(memory, chunk)
            unlink_chunk(memory, chunk, par)
            _cut(state, stack, arena, chunk, size, nb)
            return chunk
        size = size_of(memory, arena.top)
        if size < nb + par.min_units:
            if arena.have_fast:
                consolidate(state, stack, arena)
                has_changed = True
                continue
            return _sysmalloc(state, stack, arena, nb)
        return _use_top(state, stack, arena, nb)


@cold
def _sysmalloc(state, stack, arena, nb):
    """sysmalloc, if top is too small: maps the chunk, extends the heap, or adds a heap. Returns 0 if all of them
    fail."""
    par = state.par[0]
    if (nb << UNIT_SHIFT) >= par.mmap_threshold and par.mmaps < par.mmap_max:
        return map_chunk(state, stack, nb, par.hp_bytes)
    if arena.heap == MAIN_HEAP:
        if par.hp_bytes:
            _add_region(state, stack, arena, nb)
        else:
            extend_main(state, stack, arena, nb)
    elif not grow_heap(state, stack, arena, nb):
        number = new_heap(state, stack, ((nb + par.min_units) << UNIT_SHIFT) + par.heap_header)
        if number == 0:
            return map_chunk(state, stack, nb, 0)
        _add_heap(state, stack, arena, number)
        # The rest of the old heap was freed. This may have trimmed the new heap.
        if size_of(state.memory, arena.top) < nb + par.min_units:
            return np.int64(0)
    return _use_top(state, stack, arena, nb)


@leaf
def _add_heap(state, stack, arena, number):
    """Makes another heap the arena's last one. Frees the old top, except for a fencepost at its end."""
    old_top, full_heap = arena.top, state.heaps[np.uint64(arena.heap)]
    open_heap(state, stack, arena, number, state.par[0].heap_header)
    touch(stack, state.heaps[number].address, state.heaps[number].address + state.par[0].heap_header)
    full_heap.fence = _make_fencepost(state, stack, old_top, full_heap.end)
    if full_heap.fence != old_top:
        _free_old_top(state, stack, arena, old_top)


@cold
def _add_region(state, stack, arena, nb):
    """Continues the main arena in a new mapping. Frees the old top, except for a fencepost at its end."""
    memory, old_top, end = state.memory, arena.top, state.heaps[MAIN_HEAP].end
    open_region(state, stack, arena, nb)
    if old_top != UNSORTED:
        fence = _make_fencepost(state, stack, old_top, end)
        memory[np.uint64(fence)].behind, memory[np.uint64(arena.top)].before = arena.top, fence
        if fence != old_top:
            _free_old_top(state, stack, arena, old_top)


@leaf
def _make_fencepost(state, stack, old_top, end):
    """Returns the fencepost of a full heap: the end of `old_top`, or all of it if it is too small to split."""
    par = state.par[0]
    units = size_of(state.memory, old_top) - par.min_units
    touch(stack, end - (par.min_units << UNIT_SHIFT), end)
    return old_top if units < par.min_units else split(state, stack, old_top, units)


@leaf
def _free_old_top(state, stack, arena, old_top):
    start = address_of(state, old_top)
    touch(stack, start, start + 6 * state.par[0].word_size)
    state.par[0].holes = 1
    int_free(state, stack, arena, old_top, size_of(state.memory, old_top))


@inlined
def _use_top(state, stack, arena, nb):
    par = state.par[0]
    chunk = arena.top
    arena.top = split(state, stack, chunk, nb)
    if not par.touched_by_caller:
        touch_to_top(state, stack, arena)
    return chunk


@inlined
def _from_fastbin(state, arena, nb):
    """Takes the first chunk of the fastbin of this size; returns 0 if it is empty."""
    slot = np.uint64(arena.fastbins + nb)
    chunk = state.fastbins[slot]
    if chunk:
        state.fastbins[slot] = state.memory[np.uint64(chunk)].fd
    return chunk


@inlined
def _from_small_bin(state, arena, nb):
    """Takes the last chunk of the small bin of this size; returns 0 if it is empty."""
    memory, head = state.memory, arena.bins + nb + state.par[0].small_shift
    if np.int64(memory[np.uint64(head)].bk) == head:
        return np.int64(0)
    chunk = unlink_last(memory, head)
    set_used(memory, chunk, nb)
    return chunk


@cold
def _stash_fast(state, arena, nb):
    """Moves further chunks of the fastbin into the tcache."""
    index = nb - state.par[0].min_units
    while state.fastbins[np.uint64(arena.fastbins + nb)] and tcache_room(state, index):
        tcache_put(state, _from_fastbin(state, arena, nb), index)


@cold
def _stash_small(state, stack, arena, nb):
    """Moves further chunks of the small bin into the tcache."""
    memory, par = state.memory, state.par[0]
    if par.lazy_tcache and par.tcache == INACTIVE:
        tcache_init(state, stack, arena, par.tcache_units_inside)
    index, head = nb - par.min_units, arena.bins + nb + par.small_shift
    while np.int64(memory[np.uint64(head)].bk) != head and tcache_room(state, index):
        tcache_put(state, _from_small_bin(state, arena, nb), index)


@cold
def tcache_init(state, stack, arena, nb):
    """tcache_init: allocates the chunk of the tcache itself. The tcache is not used during this allocation."""
    par = state.par[0]
    if not par.lazy_tcache or par.tcache_count:
        chunk = _from_fastbin(state, arena, nb) if nb <= par.max_fast else np.int64(0)
        if chunk == 0 and nb < par.small_units:
            chunk = _from_small_bin(state, arena, nb)
        if chunk == 0:
            chunk = _search(state, stack, arena, nb, False, True)
        state.threads[par.thread].cache_chunk = chunk
    par.tcache = LIVE
    update_is_ready(par)


@inlined
def int_malloc(state, stack, arena, nb):
    """_int_malloc: returns a chunk of `nb` units, or 0 if it fails."""
    par = state.par[0]
    if nb <= par.max_fast:
        chunk = _from_fastbin(state, arena, nb)
        if chunk:
            if state.fastbins[np.uint64(arena.fastbins + nb)]:
                _stash_fast(state, arena, nb)
            return chunk
    if nb < par.small_units:
        chunk = _from_small_bin(state, arena, nb)
        if chunk:
            if nb - par.min_units < par.tcache_bins:
                _stash_small(state, stack, arena, nb)
            return chunk
        chunk = _from_remainder(state, stack, arena, nb)
        if chunk:
            return chunk
    elif arena.have_fast:
        consolidate(state, stack, arena)
    return _search_all(state, stack, arena, nb)


@cold
def call_int_malloc(state, stack, arena, nb):
    """`int_malloc` as a call. Only the most frequent caller inlines it, because it is large."""
    return int_malloc(state, stack, arena, nb)


@cold
def _search_all(state, stack, arena, nb):
    """The rest of _int_malloc. Creates the tcache if the search finds a chunk that may go into it."""
    par = state.par[0]
    resumed = False
    while True:
        chunk = _search(state, stack, arena, nb, resumed, resumed)
        if chunk != NEEDS_TCACHE:
            return chunk
        found = par.found
        tcache_init(state, stack, arena, par.tcache_units_inside)
        index = nb - par.min_units
        if not tcache_room(state, index):
            return found
        tcache_put(state, found, index)
        resumed = True


@leaf
def consolidate(state, stack, arena):
    """malloc_consolidate: merges the chunks of all fastbins with free neighbours, into the unsorted list or top."""
    memory = state.memory
    arena.have_fast = 0
    for slot in range(arena.fastbins, arena.fastbins + FASTBINS):
        chunk = state.fastbins[slot]
        state.fastbins[slot] = 0
        while chunk:
            next_chunk = np.int64(memory[np.uint64(chunk)].fd)
            _merge(state, arena, chunk, False)
            chunk = next_chunk


@inlined
def _merge(state, arena, chunk, sorts_small):
    """Merges a chunk with free neighbours and puts it into the unsorted list, its small bin, or top. Returns its
    size."""
    memory, par = state.memory, state.par[0]
    before = np.int64(memory[np.uint64(chunk)].before)
    if is_free(memory, before):
        unlink_chunk(memory, before, par)
        merge_next(state, before)
        chunk = before
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if behind == arena.top:
        merge_next(state, chunk)
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        arena.top = chunk
        return size
    if is_free(memory, behind):
        unlink_chunk(memory, behind, par)
        merge_next(state, chunk)
    size = size_of(memory, chunk)
    set_free(memory, chunk, size)
    memory[np.uint64(chunk)].smaller = 0
    if sorts_small and size < par.small_units:
        index = size + par.small_shift
        link_at_front(memory, chunk, arena.bins + index)
        mark_bin(state, arena, index)
    else:
        link_at_front(memory, chunk, arena.bins + UNSORTED)
    return size


@inlined
def int_free_chunk(state, stack, arena, chunk, size):
    """_int_free_chunk: puts a chunk into its fastbin, or merges it, which may trim the heap."""
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
def int_free_merge_chunk(state, stack, arena, chunk):
    """_int_free_merge_chunk: frees a chunk without tcache and fastbins."""
    _merge_and_trim(state, stack, arena, chunk)


@cold
def _trim(state, stack, arena):
    """Consolidates fastbins and trims the heap, after a large chunk was merged (_int_free_maybe_trim)."""
    if arena.have_fast:
        consolidate(state, stack, arena)
    if arena.heap != MAIN_HEAP:
        heap_trim(state, stack, arena)
    elif top_bytes(state, arena) >= state.par[0].trim_threshold:
        systrim(state, stack, arena, state.par[0].top_pad)


@cold
def call_int_free_chunk(state, stack, arena, chunk, size):
    """`int_free_chunk` as a call that is not inlined."""
    int_free_chunk(state, stack, arena, chunk, size)


@inlined
def _int_free(state, stack, arena, chunk, size):
    """_int_free, called by malloc itself: into the tcache up to 2.41, without it later."""
    index = size - state.par[0].min_units
    if not state.par[0].lazy_tcache and tcache_room(state, index):
        tcache_put(state, chunk, index)
    else:
        if state.par[0].perturb:
            perturb(state, stack, chunk, size << UNIT_SHIFT)
        int_free_chunk(state, stack, arena, chunk, size)


@cold
def int_free(state, stack, arena, chunk, size):
    """`_int_free` as a call that is not inlined."""
    _int_free(state, stack, arena, chunk, size)


@cold
def perturb(state, stack, chunk, length):
    """alloc_perturb, free_perturb: touches all of a chunk. For blocks of the program this is not needed, because it
    writes to them anyway."""
    start, header = address_of(state, chunk), state.par[0].header
    if length > header:
        touch(stack, start + header, start + length)


@cold
def int_realloc(state, stack, arena, chunk, old_size, nb):
    """_int_realloc: keeps the chunk, extends it into top or the next free chunk, or allocates another chunk and frees
    it. Returns the chunk, or 0 if there is no room."""
    memory, par = state.memory, state.par[0]
    result, remainder, remainder_size = chunk, np.int64(0), np.int64(0)
    behind = np.int64(memory[np.uint64(chunk)].behind)
    if old_size < nb:
        both = old_size + size_of(memory, behind)
        if behind == arena.top and both >= nb + par.min_units:
            merge_next(state, chunk)
            arena.top = split(state, stack, chunk, nb)
            touch_to_top(state, stack, arena)
            return chunk
        if behind != arena.top and is_free(memory, behind) and both >= nb:
            unlink_chunk(memory, behind, par)
        else:
            par.touched_by_caller = 1
            other = call_int_malloc(state, stack, arena, nb)
            par.touched_by_caller = 0
            if other == 0:
                return other
            if other != np.int64(memory[np.uint64(chunk)].behind):
                touch_to_top(state, stack, arena)
                result, remainder, remainder_size = other, chunk, old_size
            else:
                # The new chunk follows the old one, and both are merged. The program does not write to the part that is
                # split off again, but the header of top after it was written.
                touch_header(state, stack, arena)
                if par.perturb:
                    perturb(state, stack, other, nb << UNIT_SHIFT)
        if result == chunk:
            merge_next(state, chunk)
    if result == chunk:
        size = size_of(memory, chunk)
        set_used(memory, chunk, size)
        if size - nb >= par.min_units:
            remainder, remainder_size = _split(state, stack, chunk, nb), size - nb
    if remainder:
        _int_free(state, stack, arena, remainder, remainder_size)
    if old_size < nb and result == chunk:
        touch_to_top(state, stack, arena)
    return result
