"""pymalloc's memory at one moment: each pool, the free ones, and what of an arena is no pool."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.allocators._spans import (
    Reported,
    SpanChanges,
    SpanKind,
    report,
    report_simple,
    retract,
    with_items,
    written,
)
from replay.jit.compiling import entry, inlined

if TYPE_CHECKING:
    from replay.allocators.pymalloc import State

POOL, FREE_POOL, INTERNAL = int(SpanKind.POOL), int(SpanKind.FREE_POOL), int(SpanKind.INTERNAL)
AROUND = 3
"""Items of an arena besides its pools: what lies before them, the pools never used, what lies behind."""


def spans(state: "State", stack: NamedTuple) -> np.ndarray:
    """Rows of SPAN for every mapped arena; an arena is a region."""
    return span_changes(state, stack, None).rows


def span_changes(state: "State", stack: NamedTuple, seen: Reported | None) -> SpanChanges:
    """What changed since `seen` was returned."""
    geometry = state.geometry[0]
    reported = with_items(seen, int(geometry.arenas * (geometry.pools_per_arena + AROUND)))
    report_arenas(state, reported)
    return written(reported)


def kept_arenas(state: "State") -> int:
    """Returns how many arenas without live blocks are not released: from 3.9 on, the last usable one."""
    return int(state.geometry[0].keep_last)


@entry
def report_arenas(state, reported):
    """Reports the pools of all arenas, and what lies around them."""
    geometry = state.geometry[0]
    pool_bytes, per_arena = geometry.pool_size, geometry.pools_per_arena
    item = np.int64(0)
    for slot in range(geometry.arenas):
        arena = state.arenas[slot]
        carved = arena.carved if arena.address else 0
        for index in range(carved):
            address = arena.first_pool + index * pool_bytes
            _report_pool(reported, item, state.pools[slot * per_arena + index], address, pool_bytes, arena.address)
            item += 1
        for _ in range(carved, per_arena):
            retract(reported, item)
            item += 1
        if arena.address:
            unused = arena.first_pool + carved * pool_bytes
            end = arena.first_pool + arena.pools * pool_bytes
            report_simple(reported, item, FREE_POOL, unused, end - unused, arena.address, True)
            head_bytes, tail_bytes = arena.first_pool - arena.address, arena.address + geometry.arena_size - end
            report_simple(reported, item + 1, INTERNAL, arena.address, head_bytes, arena.address, False)
            report_simple(reported, item + 2, INTERNAL, end, tail_bytes, arena.address, False)
        else:
            for around in range(AROUND):
                retract(reported, item + around)
        item += AROUND


@inlined
def _report_pool(reported, item, pool, address, pool_bytes, region):
    """Reports a pool that was used before, whether it has live blocks now or not."""
    live, size = np.int64(pool.live), np.int64(pool.size_bytes)
    if live:
        free_bytes = (pool.capacity - live) * size
        content = live << 32 | size << 8 | POOL
        report(reported, item, content, POOL, address, pool_bytes, region, size, live, live * size, free_bytes)
    else:
        report_simple(reported, item, FREE_POOL, address, pool_bytes, region, True)
