"""pymalloc's memory at one moment: each pool, the free ones, and what of an arena is no pool."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.allocators._spans import SpanKind, span_rows
from replay.allocators.pymalloc.views import live_arenas, made_pools

if TYPE_CHECKING:
    from replay.allocators.pymalloc import State


def spans(state: "State", stack: NamedTuple) -> np.ndarray:
    """Rows of SPAN for every mapped arena; an arena is a region."""
    geometry = state.geometry[0]
    pool_bytes, per_arena = int(geometry.pool_size), int(geometry.pools_per_arena)
    slots, numbers = live_arenas(state), made_pools(state)
    arenas, pools = state.arenas[slots], state.pools[numbers]
    arena = arenas[np.searchsorted(slots, numbers // per_arena)]
    address, region = arena["first_pool"] + numbers % per_arena * pool_bytes, arena["address"]
    busy = pools["live"] > 0
    live, sizes = pools["live"][busy].astype(np.int64), pools["size_bytes"][busy].astype(np.int64)
    whole = np.full(len(numbers), pool_bytes)
    unused = arenas["pools"] - arenas["carved"]
    first_unused = arenas["first_pool"] + arenas["carved"] * pool_bytes
    end = arenas["first_pool"] + arenas["pools"] * pool_bytes
    return np.concatenate(
        [
            span_rows(
                SpanKind.POOL,
                address[busy],
                whole[busy],
                region[busy],
                live_blocks=live,
                live_bytes=live * sizes,
                free_bytes=(pools["capacity"][busy] - live) * sizes,
                size_class=sizes,
            ),
            span_rows(SpanKind.FREE_POOL, address[~busy], whole[~busy], region[~busy], free_bytes=pool_bytes),
            span_rows(
                SpanKind.FREE_POOL,
                first_unused,
                unused * pool_bytes,
                arenas["address"],
                free_bytes=unused * pool_bytes,
            ),
            span_rows(
                SpanKind.INTERNAL, arenas["address"], arenas["first_pool"] - arenas["address"], arenas["address"]
            ),
            span_rows(SpanKind.INTERNAL, end, arenas["address"] + geometry.arena_size - end, arenas["address"]),
        ]
    )
