"""The state of the kernels of `replay.trace.editing.collecting`, and what both passes compute from it."""

from typing import Any, NamedTuple

import numpy as np

from replay.jit.arrays import record
from replay.jit.compiling import by_reference, inlined, leaf

WAITS, FREED = 254, 255
"""Fates of a block that a recorded collection freed: it waits for a collection; it was freed. Lower fates are the
number of the recorded collection plus 1, modulo FATES; 0 is any other block."""
FATES = 253

AGES, AGES_AN_OCTAVE = 1280, 32
"""Classes of ages, up to 2^40 allocations."""
NO_OBJECTS = 64
"""Kinds of blocks without a type, by the power of two of their size."""

COLLECTOR = record(
    "count0", "count1", "count2", "threshold0", "threshold1", "threshold2", "enabled", "pending", "total",
    "young", "middle", "old", "examined", "aged", "frozen", "freeze_phase", "end_phase", "is_over",
    "recorded_count", "recorded_threshold", "recorded_generation", "recorded_examined", "recorded_aged",
    "phantoms", "phantoms_made", "visible", "found",
    "inside", "thread", "inside_from", "runs", "generation", "due", "patience",
    "allocations", "doomed", "rows", "recorded", "explicit", "ran", "promotions", "last_full",
)  # fmt: skip
"""The state of the collector under other settings, and of the recorded one.

    young, middle, old      live objects by generation
    examined, aged          the first key after the last collection, and after the last one of generation 1 or 2
    frozen                  keys below are permanent; phase of the mark at which `gc.freeze` is called, or -1
    recorded_…              the same in the recording; recorded_generation is that of the current collection
    end_phase, is_over      phase of the interpreter's teardown or -1; whether it has begun
    visible, found          objects that the recorded collection freed so far; those of the collection otherwise
    inside …                whether a recorded collection runs, its thread, the first key after its start; whether the
                            collector runs it under the other settings too, and its generation there
    due, patience           events until the collection runs that became due; their number at first
    doomed                  length of the list of blocks that a recorded collection will free, or has freed
    phantoms, phantoms_made live blocks of FREE_LISTS that the recording does not have, and all of them so far
    recorded, explicit, ran recorded collections so far, those of them by `gc.collect`, and those that ran
    promotions, last_full   recorded collections of generation 1 or 2; the first key after the last one of generation 2
"""
DOOMED = record("key", "domain")
LIVE = record("power", "used", "bytes", "domain")
PHANTOM = record("number", "born", "which")
FREE_LIST = record("bytes", "domain", "type", "collected", "is_empty", "frees", "pending", "freed")
"""A free list of CPython that collections fill.

    bytes, domain, type, collected  of its blocks; whether they have the collector's header
    freed                           by full collections. These empty all free lists, so this is also garbage that went
                                    into the list first
    is_empty                        the last event of such a block was an allocation: none was in the free list
    frees                           frees of such blocks in the current recorded collection, which does not run
    pending                         blocks that a collection that did not run put into the free list. Once the list is
                                    empty again, the program has taken them: without the collection, it would have
                                    allocated as many
"""
LIST_LENGTH, FREE_LISTS = 80, 24
"""Blocks of a free list of lists, dicts or keys of dicts, in CPython 3.11 to 3.15; the number of all lists plus 1: 0 is
none."""
LISTS, DICTS, KEYS, TUPLES = range(1, 5)
"""Numbers of free lists. From TUPLES on: those of tuples, from length 1 on. They take 2,000 each."""


@by_reference
class Findings(NamedTuple):
    """What the first pass finds. By key: `objects`, `fates`, and the free list of the block.

    Also by key, for each block that a collection freed: its kind, which is NO_OBJECTS plus the type, or the power of
    two of the size; the class of the age at which it was `alive` for the last time, by a realloc or a collection that
    kept it; the class of the age plus 1 at which it was `dead`. `examinations` and `promotions`: the first keys after
    the recorded collections, and after those of generation 1 or 2.
    """

    objects: np.ndarray
    fates: np.ndarray
    free_lists: np.ndarray
    kinds: np.ndarray
    alive: np.ndarray
    dead: np.ndarray
    examinations: np.ndarray
    promotions: np.ndarray


@inlined
def recorded_generation(gc: Any, key: int) -> int:
    """Returns the generation of a live object in the recording."""
    return 0 if key >= gc.recorded_examined else (2 if key < gc.recorded_aged else 1)


@inlined
def fate_of(collection: int) -> int:
    return collection % FATES + 1


@leaf
def end_recorded(gc: Any) -> None:
    """Ends a recorded collection."""
    gc.inside = 0
    gc.recorded_examined = gc.allocations
    if gc.recorded_generation > 0:
        gc.recorded_aged = gc.allocations
