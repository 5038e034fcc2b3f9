"""The kinds of objects, and what those of a kind have in common."""

from enum import IntEnum, auto

import numpy as np

from replay.jit.compiling import leaf
from replay.objects.language import EXCEPTIONS


class Kind(IntEnum):
    """The type of an object."""

    NONE = 0
    INT = auto()
    FLOAT = auto()
    TEXT = auto()
    BYTES = auto()
    TUPLE = auto()
    LIST = auto()
    INSTANCE = auto()
    RANGE = auto()
    RANGE_ITERATOR = auto()
    LIST_ITERATOR = auto()
    TUPLE_ITERATOR = auto()
    VECTOR = auto()
    """The items of a list or dict that was cleared, without it: no object, but its items die as those of one."""
    PLACE = auto()
    """A loop over a list or tuple without an iterator object."""
    DICT = auto()
    DICT_ITERATOR = auto()
    KEYS = auto()
    """The hash table of a dict: no object. Keys that were cleared have the entries of their dict, which die."""
    OPEN = auto()
    """An instance that has a dict."""
    SET = auto()
    FUNCTION = auto()
    CELL = auto()
    METHOD = auto()
    """A bound method."""
    ENDED_FRAME = auto()
    """The frame of a call that ends, up to 3.10: no object of a program."""
    EXCEPTION = auto()
    TRACEBACK = auto()
    """An entry of a traceback: the next entry, and a frame object."""
    FRAME = auto()
    LOCK = auto()
    PLAIN_LOCK = auto()
    """A lock without the collector's header, up to 3.9."""
    SEMAPHORE = auto()
    """The lock in a queue: no object."""
    QUEUE = auto()
    """A queue with an array of items, from 3.13 on."""
    LIST_QUEUE = auto()
    """A queue with a list of items, up to 3.12."""
    GENERATOR = auto()
    GENERATOR_FRAME = auto()
    """The frame of a generator up to 3.10."""
    STEPS = auto()
    """An iterator that runs a coroutine."""
    WEAKREF = auto()
    """A weak reference: see `replay.objects.weak_references`."""


(
    INT, FLOAT, TEXT, BYTES, TUPLE, LIST, INSTANCE, RANGE, RANGE_ITERATOR, LIST_ITERATOR, TUPLE_ITERATOR, VECTOR, PLACE,
    DICT, DICT_ITERATOR, KEYS, OPEN, SET, FUNCTION, CELL, METHOD, ENDED_FRAME, EXCEPTION, TRACEBACK, FRAME,
    LOCK, PLAIN_LOCK, SEMAPHORE, QUEUE, LIST_QUEUE, GENERATOR, GENERATOR_FRAME,
    STEPS, WEAKREF,
) = map(int, list(Kind)[1:])  # fmt: skip


def _kinds(*kinds: int) -> int:
    """Returns a set of kinds for `is_one_of`."""
    return sum(1 << kind for kind in kinds)


WITH_HEADER = _kinds(
    TUPLE, LIST, DICT, INSTANCE, OPEN, SET, LIST_ITERATOR, TUPLE_ITERATOR, DICT_ITERATOR, FUNCTION, CELL, METHOD,
    EXCEPTION, TRACEBACK, FRAME, LOCK, QUEUE, LIST_QUEUE, GENERATOR, GENERATOR_FRAME,
    STEPS, WEAKREF,
)  # fmt: skip
"""Kinds of objects with the collector's header."""
WITH_ITEMS = _kinds(
    TUPLE, LIST, VECTOR, INSTANCE, OPEN, DICT, KEYS, SET, EXCEPTION, TRACEBACK, FRAME, QUEUE, LIST_QUEUE, GENERATOR,
    GENERATOR_FRAME,
)  # fmt: skip
"""Kinds of objects that refer to others with `items`."""
FORWARD = _kinds(
    INSTANCE, OPEN, DICT, KEYS, SET, EXCEPTION, TRACEBACK, FRAME, QUEUE, LIST_QUEUE, GENERATOR, GENERATOR_FRAME,
)  # fmt: skip
"""Kinds of objects whose items die from the first one on; those of others die from the last one on."""
NESTED = _kinds(
    TUPLE, LIST, DICT, INSTANCE, OPEN, SET, TRACEBACK, FRAME, GENERATOR_FRAME,
)  # fmt: skip
"""Kinds of objects that count for the trashcan; see `is_nested`."""
OBSERVABLE = _kinds(INSTANCE, OPEN, WEAKREF)
"""Kinds of objects whose end can do more than drop their references: see `_observe`."""
EXCEPTION_ITEMS, BUILTIN_EXCEPTIONS = 5, len(EXCEPTIONS)
GENERATOR_EXIT = [*EXCEPTIONS].index("GeneratorExit")
STOP_ITERATION = [*EXCEPTIONS].index("StopIteration")
"""The classes of the exceptions that close a generator, and that `next` raises."""
TUPLES_KEPT = 21
"""Tuples of fewer items have a free list for each length."""
KINDS = len(Kind)
FREE_LISTS = KINDS + TUPLES_KEPT
LONGEST_FREE_LIST = 2000


@leaf
def is_one_of(kind, kinds):
    """Whether a kind is in a set of kinds, with one comparison."""
    return np.int64(kinds) >> kind & 1 != 0


@leaf
def has_header(kind):
    """Whether objects of a kind have the collector's header."""
    return is_one_of(kind, WITH_HEADER)


@leaf
def is_forward(kind):
    """Whether the items of an object die from the first one on; those of others die from the last one on."""
    return is_one_of(kind, FORWARD)
