"""The Python stacks of a capture's threads, as its records push and pop frames, and what else is known between records.

A stack is a chain of nodes from the innermost frame on, so that any depth costs what it holds. A frame is a code object
and an instruction in it. Most frames never allocate; those that do are numbered once more by themselves.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.arrays import extend, record, with_room
from replay.jit.compiling import inlined, leaf
from replay.trace import NO_SITE
from replay.trace.block_numbering import doubled, find_slot

RECENT = 15
"""So many addresses are remembered, for records that name one again."""
OFFSET_BITS = 32
OFFSETS = (1 << OFFSET_BITS) - 1
"""An instruction's offset, below the code object's number in a frame's key."""
_TALLY = record(
    "pointer", "recent", "thread", "records", "mappings", "mapped_bytes", "nodes", "loose", "frames", "used",
)  # fmt: skip
"""`pointer`: the last new address in its units; `recent`: where the latest of the recent addresses is; `loose`: the
first loose node; the others are counts."""
_NODE = record("frame", "below")
_FRAME = record("key", "used")
"""Its key, and its number among the used ones or -1."""


class State(NamedTuple):
    """What is known between two records; changes in place."""

    tallies: np.ndarray
    """One record of _TALLY."""
    recent: np.ndarray
    tops: np.ndarray
    """By thread the node of its innermost frame, or -1."""
    nodes: np.ndarray
    """Of _NODE; those that were popped are a list of loose ones."""
    keys: np.ndarray
    """With `numbers` a table of `replay.trace.block_numbering`, from code and offset as one key to the frame."""
    numbers: np.ndarray
    frames: np.ndarray
    """Of _FRAME."""
    used: np.ndarray
    """The keys of frames that allocate, in the order of their first allocations."""


def new_state() -> State:
    tallies = np.zeros(1, _TALLY)
    tallies[0].thread = tallies[0].loose = -1
    return State(
        tallies, np.zeros(RECENT, np.int64), np.full(64, -1, np.int64), np.zeros(1024, _NODE),
        np.zeros(2048, np.int64), np.full(2048, -1, np.int64), np.zeros(1024, _FRAME), np.zeros(1024, np.int64),
    )  # fmt: skip


def grown(state: State) -> State:
    """The same, with room in each table that has none."""
    tally = state.tallies[0]
    if _table_is_full(state):
        keys, numbers = doubled(state.keys, state.numbers)
        frames, used = (extend(each, 2 * each.shape[0]) for each in (state.frames, state.used))
        state = state._replace(keys=keys, numbers=numbers, frames=frames, used=used)
    return state._replace(
        nodes=with_room(state.nodes, tally.nodes + 1), tops=with_room(state.tops, tally.thread + 1, -1)
    )


def used_frames(state: State, start: int) -> list[tuple[int, int]]:
    """Code object and offset of the frames that allocate, from that number on."""
    keys = state.used[start : state.tallies[0].used].tolist()
    return [(key >> OFFSET_BITS, key & OFFSETS) for key in keys]


@inlined
def has_room(state: State) -> bool:
    """Whether a frame can be pushed."""
    return not _table_is_full(state) and state.tallies[0].nodes < state.nodes.shape[0]


@inlined
def _table_is_full(state: State) -> bool:
    return 2 * (state.tallies[0].frames + 1) > state.keys.shape[0]


@inlined
def innermost(state: State) -> int:
    """The innermost frame of the thread, by its number among the used ones; it becomes one if it was none."""
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
    """A frame begins in the thread, in place; there is room."""
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
    """So many frames of the thread end, in place; False if there are fewer."""
    tally, thread = state.tallies[0], state.tallies[0].thread
    for _ in range(frames):
        node = state.tops[thread]
        if node < 0:
            return False
        state.tops[thread] = state.nodes[node].below
        state.nodes[node].below, tally.loose = tally.loose, node
    return True
