"""The Python stacks of a capture's threads, as its records push and pop frames, and what else is known between records.

A stack is a chain of nodes from the innermost frame on, so that any depth costs what it holds. A frame is a code object
and an instruction in it. Most frames never allocate; those that do are numbered once more by themselves.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.compiling import inlined, leaf
from replay.trace import NO_SITE
from replay.trace.block_numbering import doubled, find_slot

RECENT = 15
"""So many addresses are remembered, for records that name one again."""
OFFSET_BITS = 32
OFFSETS = (1 << OFFSET_BITS) - 1
"""An instruction's offset, below the code object's number in a frame's key."""
(
    AT_POINTER, AT_RECENT, AT_THREAD, AT_RECORDS, AT_MAPPINGS, AT_MAPPED_BYTES, _AT_NODES, _AT_LOOSE, _AT_FRAMES,
    _AT_USED,
) = range(10)  # fmt: skip


class State(NamedTuple):
    """What is known between two records; changes in place."""

    tallies: np.ndarray
    """The last new address in its units, where the latest of `recent` is, the thread; how many nodes there are and the
    first of the loose ones; how many frames and used ones; records, those of mmap and munmap, and the bytes mapped."""
    recent: np.ndarray
    tops: np.ndarray
    """By thread the node of its innermost frame, or -1."""
    nodes: np.ndarray
    """Frame and node below; those that were popped are a list of loose ones."""
    keys: np.ndarray
    """With `numbers` a table of `replay.trace.block_numbering`, from code and offset as one key to the frame."""
    numbers: np.ndarray
    frames: np.ndarray
    """By frame its key, and its number among the used ones or -1."""
    used: np.ndarray
    """The keys of frames that allocate, in the order of their first allocations."""


def new_state() -> State:
    tallies = np.zeros(10, np.int64)
    tallies[AT_THREAD] = tallies[_AT_LOOSE] = -1
    return State(
        tallies, np.zeros(RECENT, np.int64), np.full(64, -1, np.int64), np.zeros((1024, 2), np.int64),
        np.zeros(2048, np.int64), np.full(2048, -1, np.int64), np.zeros((1024, 2), np.int64), np.zeros(1024, np.int64),
    )  # fmt: skip


def grown(state: State) -> State:
    """The same, with room in each table that has none."""
    tallies = state.tallies
    if _table_is_full(state):
        keys, numbers = doubled(state.keys, state.numbers)
        frames, used = _lengthened(state.frames, 0), _lengthened(state.used, 0)
        state = state._replace(keys=keys, numbers=numbers, frames=frames, used=used)
    if tallies[_AT_NODES] == state.nodes.shape[0]:
        state = state._replace(nodes=_lengthened(state.nodes, 0))
    while tallies[AT_THREAD] >= state.tops.shape[0]:
        state = state._replace(tops=_lengthened(state.tops, -1))
    return state


def used_frames(state: State, start: int) -> list[tuple[int, int]]:
    """Code object and offset of the frames that allocate, from that number on."""
    keys = state.used[start : state.tallies[_AT_USED]].tolist()
    return [(key >> OFFSET_BITS, key & OFFSETS) for key in keys]


def _lengthened(array: np.ndarray, fill: int) -> np.ndarray:
    return np.concatenate([array, np.full_like(array, fill)])


@inlined
def has_room(state: State) -> bool:
    """Whether a frame can be pushed."""
    return not _table_is_full(state) and state.tallies[_AT_NODES] < state.nodes.shape[0]


@inlined
def _table_is_full(state: State) -> bool:
    return 2 * (state.tallies[_AT_FRAMES] + 1) > state.keys.shape[0]


@inlined
def innermost(state: State) -> int:
    """The innermost frame of the thread, by its number among the used ones; it becomes one if it was none."""
    top = state.tops[state.tallies[AT_THREAD]]
    if top < 0:
        return NO_SITE
    frame = state.nodes[top, 0]
    if state.frames[frame, 1] < 0:
        number = state.tallies[_AT_USED]
        state.frames[frame, 1], state.used[number] = number, state.frames[frame, 0]
        state.tallies[_AT_USED] = number + 1
    return state.frames[frame, 1]


@leaf
def push(code: int, offset: int, state: State) -> None:
    """A frame begins in the thread, in place; there is room."""
    tallies, thread = state.tallies, state.tallies[AT_THREAD]
    key = code << OFFSET_BITS | offset & OFFSETS
    slot = find_slot(key, state.keys, state.numbers)
    frame = state.numbers[slot]
    if frame < 0:
        frame = tallies[_AT_FRAMES]
        state.keys[slot], state.numbers[slot] = key, frame
        state.frames[frame, 0], state.frames[frame, 1] = key, -1
        tallies[_AT_FRAMES] = frame + 1
    node = tallies[_AT_LOOSE]
    if node >= 0:
        tallies[_AT_LOOSE] = state.nodes[node, 1]
    else:
        node = tallies[_AT_NODES]
        tallies[_AT_NODES] = node + 1
    state.nodes[node, 0], state.nodes[node, 1], state.tops[thread] = frame, state.tops[thread], node


@leaf
def pop(frames: int, state: State) -> bool:
    """So many frames of the thread end, in place; False if there are fewer."""
    tallies, thread = state.tallies, state.tallies[AT_THREAD]
    for _ in range(frames):
        node = state.tops[thread]
        if node < 0:
            return False
        state.tops[thread] = state.nodes[node, 1]
        state.nodes[node, 1], tallies[_AT_LOOSE] = tallies[_AT_LOOSE], node
    return True
