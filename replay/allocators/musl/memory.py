"""Size classes, groups, slots, and the headers of slots.

    unit        16 bytes
    class       SIZE_CLASSES[c] units are the size of a slot of class c
    group       up to 32 slots of one class behind a header of one unit. It has a mapping, or it is *nested* in a slot
                of a larger class
    meta        the record of a group. Slots are bits: `avail` can be allocated, `freed` were freed or never activated;
                all others are live. The real metas are in pages of their own above the program break, 101 a page
    active_last the last slot that was activated: later ones are not used yet, so that their pages are not touched
    active      the queue of groups of a class that have free slots, as a ring; its head is where slots come from
    header      the last 4 bytes before a block or slot: an unused byte, a byte with the slot's index and the end's
                reserve, and two bytes with an offset. A block is not always at the start of its slot: malloc cycles the
                offset each time a slot is used again. So what is left of old headers in memory decides addresses
    word        the 4 header bytes before each unit of a group, in `words`

Blocks with a mapping of their own have the class MAPPED. Their headers decide nothing, so they have no words, unless
realloc copies old headers into them, and could copy them back into a small slot.
"""

import numpy as np

from replay.allocators._stack import ask_for_room
from replay.jit.arrays import record
from replay.jit.compiling import inlined, leaf
from replay.jit.cpu_intrinsics import bit_length

UNIT, UNIT_SHIFT = 16, 4
OVERHEAD = 4
"""Bytes of each slot that the header of the next one takes."""
SIZE_CLASSES = np.array(
    [
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 20, 25, 31, 36, 42, 50, 63, 72, 84, 102, 127,
        146, 170, 204, 255, 292, 340, 409, 511, 584, 682, 818, 1023, 1169, 1364, 1637, 2047,
        2340, 2730, 3276, 4095, 4680, 5460, 6552, 8191,
    ],
    np.int64,
)  # fmt: skip
CLASSES = len(SIZE_CLASSES)
MAPPED = 63
MMAP_THRESHOLD = 131052
PAGE, PAGE_SHIFT = 4096, 12
PAGE_WORDS = PAGE // UNIT
METAS_A_PAGE = 101
NOTHING = -1
BOUNCE_CLASS, BOUNCE_CLASSES = 7, 32
"""Bounces are counted for classes from 7 to 38."""
PAGES_MAX = 260
"""More than the pages of any mapped group."""
GROUPS_AT_ONCE = 2
"""The most ranges of words that one event takes."""
SMALL_WORDS = 128
"""More than the units of a slot that can host a group."""
PREFIX_PAGES = 2
"""Pages of a block of the class MAPPED that have words, if any have: more than a small slot can get of it."""

HEAP = record(
    "brk", "mappings", "seq", "lazy", "metas", "used", "unused", "unused_meta", "words_used"
)  # fmt: skip
"""
    brk           end of the pages of metas; 0 before the first one
    mappings      mappings that were ever made: from it comes the first offset of a block
    seq           number of recent mappings and unmappings, 1 to 255, to detect bounces
    lazy          1 if whole pages of a free slot are released lazily
    metas         metas ever used; `unused_meta`: the first of those that are not in use
    used, unused  the same for records of blocks
    words_used    words ever used; `ranges`: by number of pages, the first word of unused ones plus 1, which has the
                  next of them; 0 for none
"""
META = record(
    "mem", "previous", "next", "avail", "freed", "last", "active_last", "size_class", "pages", "host", "host_slot",
    "word",
)  # fmt: skip
"""
    mem         address of the group's header
    previous, next   in the ring of its class; NOTHING if it is in none
    last        index of the last slot
    pages       pages of its mapping; 0 if it is nested in slot `host_slot` of the meta `host`
    word        the number in `words` of the header before its first unit
"""
BLOCK = record("address", "size_bytes", "stride", "next", meta=np.int32, slot=np.int32)
"""`size_bytes`: requested, and `stride`: of its slot. The address is 0 where the block was freed."""


@leaf
def size_to_class(size):
    """Returns the class of a request of `size` bytes, below MMAP_THRESHOLD."""
    units = (size + OVERHEAD - 1) >> UNIT_SHIFT
    if units < 10:
        return units
    units += 1
    index = 4 * (bit_length(units) - 4) + 8
    if units > SIZE_CLASSES[index + 1]:
        index += 2
    if units > SIZE_CLASSES[index]:
        index += 1
    return index


@inlined
def lowest_slot(mask):
    """Returns the index of the lowest bit of a mask above 0."""
    return bit_length(mask & -mask) - 1


@inlined
def all_slots(last):
    """Returns the mask of all slots up to the last one."""
    return (2 << last) - 1


@inlined
def stride_of(meta):
    """Returns the distance of two slots in bytes; of a single slot with a mapping, all but the group's header."""
    if meta.last == 0 and meta.pages:
        return meta.pages * PAGE - UNIT
    return UNIT * SIZE_CLASSES[meta.size_class]


@inlined
def slot_start(meta, slot):
    """Returns the address of a slot."""
    return meta.mem + UNIT + stride_of(meta) * slot


# Words: byte 0 is the overflow byte, byte 1 has index and reserve, bytes 2 and 3 the offset.

_INDEX, _OFFSET = 8, 16
_NOT_AT_START = 7 << 5
_FREED = 255


@inlined
def _word_at(meta, address):
    """Returns the number of the word before an address of the group."""
    return meta.word + ((address - meta.mem) >> UNIT_SHIFT)


@leaf
def set_end(state, meta, slot, address, size):
    """Writes the reserve, the bytes behind the `size` bytes of a block, into header and end of its slot.

    The byte behind the block becomes 0. It may be part of a word that is used later, when a group is nested there.
    """
    if meta.size_class == MAPPED:
        return
    words = state.words
    reserve = slot_start(meta, slot) + stride_of(meta) - OVERHEAD - address - size
    if reserve:
        _clear_byte(words, meta, address + size)
    at = _word_at(meta, address)
    index = words[at] >> _INDEX & 31
    words[at] = words[at] & ~np.int64(255 << _INDEX) | (index + (min(reserve, 5) << 5)) << _INDEX


@inlined
def _clear_byte(words, meta, address):
    byte = (address & (UNIT - 1)) - (UNIT - OVERHEAD)
    if byte >= 0:
        at = _word_at(meta, address + UNIT)
        words[at] &= ~(np.int64(255) << (8 * byte))


@leaf
def enframe(state, number, slot, size, counter):
    """Writes the header of a block in a slot. Returns its address.

    The offset in the slot is one more than the last one there; in memory that is 0, it comes from `counter`.
    """
    meta, words = state.metas[number], state.words
    stride, address = stride_of(meta), slot_start(meta, slot)
    slack = (stride - OVERHEAD - size) >> UNIT_SHIFT
    word = words[_word_at(meta, address)] if meta.size_class != MAPPED else np.int64(0)
    offset = ((word >> _OFFSET) + 1 if word >> _INDEX & 255 else counter) & 255
    if offset > slack:
        mask = slack
        mask |= mask >> 1
        mask |= mask >> 2
        mask |= mask >> 4
        offset &= mask
        if offset > slack:
            offset -= slack + 1
    if meta.size_class != MAPPED:
        if offset:
            words[_word_at(meta, address)] = word & 255 | _NOT_AT_START << _INDEX | offset << _OFFSET
        at = _word_at(meta, address) + offset
        first = words[at] & 255 if offset == 0 else 0
        words[at] = first | slot << _INDEX | (at - meta.word - 1 & 65535) << _OFFSET
        set_end(state, meta, slot, address + UNIT * offset, size)
    return address + UNIT * offset


@leaf
def mark_freed(state, meta, address):
    """Writes the header of a freed block."""
    if meta.size_class != MAPPED:
        at = _word_at(meta, address)
        state.words[at] = state.words[at] & 255 | _FREED << _INDEX


@leaf
def mark_aligned(state, meta, slot, address, size):
    """Writes the headers of an aligned block at `address`, behind the start of its slot."""
    if meta.size_class == MAPPED:
        return
    start, words = slot_start(meta, slot), state.words
    units = (address - meta.mem) // UNIT - 1
    if units <= 65535:
        words[_word_at(meta, address)] = slot << _INDEX | units << _OFFSET
    else:
        words[_word_at(meta, address)] = slot << _INDEX | 1
    set_end(state, meta, slot, address, size)
    at = _word_at(meta, start)
    words[at] = words[at] & 255 | _NOT_AT_START << _INDEX | ((address - start) // UNIT & 65535) << _OFFSET


@leaf
def clear_words(state, meta, address, size):
    """The block's first `size` bytes become 0."""
    if meta.size_class == MAPPED:
        return
    first = _word_at(meta, address) + 1
    for at in range(first, first + (size >> UNIT_SHIFT)):
        state.words[at] = 0
    part = (size & (UNIT - 1)) - (UNIT - OVERHEAD)
    if part > 0:
        state.words[first + (size >> UNIT_SHIFT)] &= ~((np.int64(1) << (8 * part)) - 1)


@leaf
def copy_words(state, stack, meta, address, new_meta, new_address, size):
    """The first `size` bytes of one block are copied to another one."""
    if new_meta.size_class == MAPPED:
        if not _has_words(state, meta, address, size):
            return
        new_meta.word = take_words(state, stack, PREFIX_PAGES)
    if meta.size_class == MAPPED:
        clear_words(state, new_meta, new_address, size)
    if meta.word == NOTHING:
        return
    words = state.words
    source, into, count = _word_at(meta, address) + 1, _word_at(new_meta, new_address) + 1, size >> UNIT_SHIFT
    if meta.size_class == MAPPED or new_meta.size_class == MAPPED:
        count = min(count, SMALL_WORDS)
    for at in range(count):
        words[into + at] = words[source + at]
    part = (size & (UNIT - 1)) - (UNIT - OVERHEAD)
    if part > 0 and count == size >> UNIT_SHIFT:
        mask = (np.int64(1) << (8 * part)) - 1
        words[into + count] = words[into + count] & ~mask | words[source + count] & mask


@leaf
def _has_words(state, meta, address, size):
    """Whether there are old headers at the start of a block of `size` bytes."""
    if meta.word == NOTHING:
        return False
    first = _word_at(meta, address) + 1
    end = first + min(SMALL_WORDS, size >> UNIT_SHIFT)
    while first < end and not state.words[first]:
        first += 1
    return first < end


@leaf
def take_words(state, stack, pages):
    """Returns the first of as many words as `pages` have, all 0."""
    heap, words = state.heap[0], state.words
    first, count = state.ranges[pages] - 1, pages * PAGE_WORDS
    if first >= 0:
        state.ranges[pages] = words[first]
    else:
        first = heap.words_used
        heap.words_used += count
        if heap.words_used + GROUPS_AT_ONCE * PAGES_MAX * PAGE_WORDS > words.shape[0]:
            ask_for_room(stack)
    for at in range(first, first + count):
        words[at] = 0
    return first


@leaf
def give_words_back(state, first, pages):
    """The words are not in use any more."""
    state.words[first] = state.ranges[pages]
    state.ranges[pages] = first + 1
