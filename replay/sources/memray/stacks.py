"""The Python stacks of a capture's threads, and other state between its records.

A stack is a linked list of nodes from the innermost frame on, so its memory is proportional to its depth. A frame is a
code object and an instruction. Most frames never allocate; those that do (*used* frames) have numbers of their own.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import extend, record, with_room
from replay.jit.compiling import inlined, leaf
from replay.trace import NO_SITE
from replay.trace.block_numbering import doubled, find_slot

RECENT = 15
"""Number of recent addresses that records can refer to."""
OFFSET_BITS = 32
OFFSETS = (1 << OFFSET_BITS) - 1
"""Mask of an instruction's offset in the key of a frame; the code object's number is in the higher bits."""
_TALLY = record(
    "pointer", "recent", "thread", "records", "mappings", "mapped_bytes", "nodes", "loose", "frames", "used",
)  # fmt: skip
"""`pointer`: the last new address in its units; `recent`: index of the latest recent address; `loose`: the first free
node; the others are counts."""
_NODE = record("frame", "below")
_FRAME = record("key", "used")
"""Key of a frame, and its number among the used frames or -1."""


class State(NamedTuple):
    """The state between two records; changes in place."""

    tallies: np.ndarray
    """One record of _TALLY."""
    recent: np.ndarray
    tops: np.ndarray
    """For each thread, the node of its innermost frame, or -1."""
    nodes: np.ndarray
    """Nodes of type _NODE. Popped nodes are in a list of free nodes."""
    keys: np.ndarray
    """With `numbers`, a hash table of `replay.trace.block_numbering`: from the key of a frame to its number."""
    numbers: np.ndarray
    frames: np.ndarray
    """Frames of type _FRAME."""
    used: np.ndarray
    """Keys of the used frames, in the order of their first allocations."""


def new_state() -> State:
    tallies = np.zeros(1, _TALLY)
    tallies[0].thread = tallies[0].loose = -1
    return State(
        tallies, np.zeros(RECENT, np.int64), np.full(64, -1, np.int64), np.zeros(1024, _NODE),
        np.zeros(2048, np.int64), np.full(2048, -1, np.int64), np.zeros(1024, _FRAME), np.zeros(1024, np.int64),
    )  # fmt: skip


def grown(state: State) -> State:
    """Returns the state with every full table enlarged."""
    tally = state.tallies[0]
    if _table_is_full(state):
        keys, numbers = doubled(state.keys, state.numbers)
        frames, used = (extend(each, 2 * each.shape[0]) for each in (state.frames, state.used))
        state = state._replace(keys=keys, numbers=numbers, frames=frames, used=used)
    return state._replace(
        nodes=with_room(state.nodes, tally.nodes + 1), tops=with_room(state.tops, tally.thread + 1, -1)
    )


def used_frames(state: State, start: int) -> list[tuple[int, int]]:
    """Returns code object and offset of the used frames from number `start` on."""
    keys = state.used[start : state.tallies[0].used].tolist()
    return [(key >> OFFSET_BITS, key & OFFSETS) for key in keys]


@inlined
def has_room(state: State) -> bool:
    """Whether the tables have room for another frame."""
    return not _table_is_full(state) and state.tallies[0].nodes < state.nodes.shape[0]


@inlined
def _table_is_full(state: State) -> bool:
    return 2 * (state.tallies[0].frames + 1) > state.keys.shape[0]


@inlined
def innermost(state: State) -> int:
    """Returns the number of the thread's innermost frame among the used frames. Makes it a used frame."""
    top = state.tops[state.tallies[0].thread]
    if top < 0:
        return NO_SITE
    frame = state.frames[state.nodes[top].frame]
    if frame.used < 0:
        number = state.tallies[0].used
        frame.used, state.used[number] = number, frame.key
        state.tallies[0].used = number + 1
    return frame.used


@leaf
def push(code: int, offset: int, state: State) -> None:
    """Pushes a frame onto the stack of the current thread, in place. The tables must have room."""
    tally, thread = state.tallies[0], state.tallies[0].thread
    key = code << OFFSET_BITS | offset & OFFSETS
    slot = find_slot(key, state.keys, state.numbers)
    frame = state.numbers[slot]
    if frame < 0:
        frame = tally.frames
        state.keys[slot], state.numbers[slot] = key, frame
        state.frames[frame].key, state.frames[frame].used = key, -1
        tally.frames = frame + 1
    node = tally.loose
    if node >= 0:
        tally.loose = state.nodes[node].below
    else:
        node = tally.nodes
        tally.nodes = node + 1
    state.nodes[node].frame, state.nodes[node].below, state.tops[thread] = frame, state.tops[thread], node


@leaf
def pop(frames: int, state: State) -> bool:
    """Pops frames of the current thread, in place; returns False if the stack has fewer."""
    tally, thread = state.tallies[0], state.tallies[0].thread
    for _ in range(frames):
        node = state.tops[thread]
        if node < 0:
            return False
        state.tops[thread] = state.nodes[node].below
        state.nodes[node].below, tally.loose = tally.loose, node
    return True
