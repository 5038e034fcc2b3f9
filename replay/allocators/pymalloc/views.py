"""Tables of pymalloc's state for reports, and the check of its invariants. All of it is plain Python."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.allocators._stack import ARENA_VIEW, CLASS_VIEW
from replay.allocators.pymalloc.arenas import NO_LINK, NONE

if TYPE_CHECKING:
    from replay.allocators.pymalloc import State


def live_arenas(state: "State") -> np.ndarray:
    """Returns the numbers of mapped arenas."""
    arenas = state.arenas[: state.geometry[0].arenas]
    return np.flatnonzero(arenas["address"])


def made_pools(state: "State") -> np.ndarray:
    """Returns the numbers of the pools in mapped arenas that were ever used."""
    per_arena, arenas = int(state.geometry[0].pools_per_arena), live_arenas(state)
    offsets = np.arange(per_arena)
    numbers = arenas[:, None] * per_arena + offsets
    return numbers[offsets < state.arenas["carved"][arenas][:, None]]


def observe(state: "State") -> dict[str, np.ndarray]:
    """Returns two tables: `classes` has a row for each size class, `arenas` one for each mapped arena, by address."""
    per_arena = int(state.geometry[0].pools_per_arena)
    numbers = made_pools(state)
    pools = state.pools[numbers]
    classes = np.zeros(state.sizes.shape[0], CLASS_VIEW)
    classes["block_size"] = state.sizes
    busy = pools["live"] > 0
    index = pools["index"][busy]
    full = pools["list"][busy] == NO_LINK
    np.add.at(classes["pools_full"], index, full)
    np.add.at(classes["pools_used"], index, ~full)
    for name, field in (("blocks", "live"), ("blocks_carved", "carved"), ("blocks_capacity", "capacity")):
        np.add.at(classes[name], index, pools[field][busy])
    slots = live_arenas(state)
    arenas = np.zeros(slots.shape[0], ARENA_VIEW)
    for name, field in (("address", "address"), ("pools", "pools"), ("pools_free", "free")):
        arenas[name] = state.arenas[field][slots]
    owner = np.searchsorted(slots, numbers[busy] // per_arena)
    np.add.at(arenas["blocks"], owner, pools["live"][busy])
    np.add.at(arenas["block_bytes"], owner, pools["live"][busy] * state.sizes[index])
    return {"classes": classes, "arenas": arenas[np.argsort(arenas["address"])]}


def _chain(first: int, following: np.ndarray, end: int) -> list[int]:
    """Returns the linked list that starts at `first`. Raises AssertionError if it has a cycle."""
    found: list[int] = []
    while first != end:
        found.append(int(first))
        assert len(found) <= following.shape[0], "a list has a cycle"
        first = following[first]
    return found


def check(state: "State", stack: NamedTuple) -> None:
    """Raises AssertionError if an invariant of the package does not hold."""
    geometry, tally = state.geometry[0], stack.tally[0]  # type: ignore[attr-defined]
    stride, used, full, free = 1 << state.pool_shift, 0, 0, 0
    for number in made_pools(state):
        pool = state.pools[number]
        listed = _chain(int(pool.list), state.links[number * stride : (number + 1) * stride], NO_LINK)
        assert len(set(listed)) == len(listed)
        assert pool.live + len(listed) == pool.carved <= pool.capacity
        used += pool.live > 0 and bool(listed)
        full += not listed
        free += pool.live == 0
        assert listed or pool.live == pool.capacity == pool.carved
    linked = [number for head in state.used for number in _chain(int(head), state.pools["next"], NONE)]
    assert len(linked) == len(set(linked)) == used == tally.pools_used
    assert full == tally.pools_full
    slots = live_arenas(state)
    usable = _chain(int(geometry.usable), state.arenas["next"], NONE)
    counts = state.arenas["free"][usable]
    assert (np.diff(counts) >= 0).all(), "usable arenas are out of order"
    assert set(usable) == {int(slot) for slot in slots if state.arenas[slot].free > 0}
    for count in range(1, int(geometry.pools_per_arena) + 1):
        behind = [slot for slot in usable if state.arenas[slot].free == count]
        assert state.last_with[count] == (behind[-1] if behind else NONE)
    for slot in slots:
        arena = state.arenas[slot]
        freed = _chain(int(arena.free_list), state.pools["next"], NONE)
        assert arena.free == len(freed) + arena.pools - arena.carved
        assert all(state.pools[number].live == 0 for number in freed)
    assert tally.pools_used + tally.pools_full + tally.pools_free == state.arenas["pools"][slots].sum()
    assert tally.pool_bytes == geometry.pool_size * (used + full)
    assert tally.arenas == len(slots) == tally.arenas_mapped - tally.arenas_unmapped
    assert tally.arena_bytes == geometry.arena_size * len(slots)
