"""What is mapped: groups, blocks with a mapping of their own, and the pages of metas."""

from typing import Any

import numpy as np

from replay.allocators._spans import SpanKind, span_rows
from replay.allocators.musl.memory import CLASSES, MAPPED, NOTHING, PAGE, SIZE_CLASSES, UNIT, all_slots


def spans(state: Any, stack: Any) -> np.ndarray:
    """Returns rows of SPAN. A group with a mapping is one span, with all groups that are nested in it."""
    metas, top = _groups(state)
    live = _live_blocks(state)
    owner = top[live["meta"]]
    blocks = np.bincount(owner, minlength=len(metas))
    live_bytes = np.bincount(owner, live["stride"], minlength=len(metas)).astype(np.int64)
    slots = np.array([int(mask).bit_count() for mask in metas["avail"] | metas["freed"]], np.int64)
    free_bytes = np.bincount(top, slots * _strides(metas), minlength=len(metas)).astype(np.int64)
    rows = []
    for kind, chosen in (
        (SpanKind.HEAP, metas["size_class"] < CLASSES),
        (SpanKind.MAPPING, metas["size_class"] == MAPPED),
    ):
        numbers = np.flatnonzero(chosen & (metas["pages"] > 0) & (metas["mem"] > 0))
        address = metas["mem"][numbers]
        rows.append(
            span_rows(
                kind,
                address,
                metas["pages"][numbers] * PAGE,
                address,
                live_blocks=blocks[numbers],
                live_bytes=live_bytes[numbers],
                free_bytes=free_bytes[numbers],
            )
        )
    start = np.array([stack.linux.space[0].brk_base + PAGE])
    length = np.maximum(state.heap[0].brk - start, 0)
    return np.concatenate([*rows, span_rows(SpanKind.INTERNAL, start, length, start)])


def _groups(state: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns all metas, and of each the mapped group that it is in, by number."""
    metas = state.metas[: state.heap[0].metas]
    top = np.arange(len(metas))
    while (is_nested := (metas["mem"][top] > 0) & (metas["host"][top] >= 0)).any():
        top[is_nested] = metas["host"][top[is_nested]]
    return metas, top


def _live_blocks(state: Any) -> np.ndarray:
    blocks = state.blocks[: state.heap[0].used]
    return blocks[blocks["address"] > 0]


def _strides(metas: np.ndarray) -> np.ndarray:
    """Returns `stride_of` of each meta."""
    sizes = UNIT * SIZE_CLASSES[np.minimum(metas["size_class"], CLASSES - 1)]
    return np.where((metas["last"] == 0) & (metas["pages"] > 0), metas["pages"] * PAGE - UNIT, sizes)


def check(state: Any, stack: Any) -> None:
    """Raises AssertionError if an invariant of the package does not hold."""
    heap, (metas, _), live = state.heap[0], _groups(state), _live_blocks(state)
    used = metas["mem"] > 0
    assert not (metas["avail"] & metas["freed"])[used].any()
    taken = np.zeros(len(metas), np.int64)
    np.bitwise_or.at(taken, live["meta"], np.int64(1) << live["slot"])
    nested = metas[used & (metas["host"] >= 0)]
    np.bitwise_or.at(taken, nested["host"], np.int64(1) << nested["host_slot"])
    slots = np.array([all_slots(int(last)) for last in metas["last"]], np.int64)
    assert (taken == slots - (metas["avail"] | metas["freed"]))[used].all(), "a slot is neither free nor live"
    in_ring = set()
    for size_class, head in enumerate(state.active.tolist()):
        number = head
        while number != NOTHING:
            assert number not in in_ring
            assert metas[number]["size_class"] == size_class
            in_ring.add(number)
            number = int(metas[number]["next"])
            number = NOTHING if number == head else number
    free = np.flatnonzero(used & ((metas["avail"] | metas["freed"]) > 0))
    assert set(free.tolist()) <= in_ring
    grouped = metas[used & (metas["size_class"] < CLASSES)]
    usage = np.bincount(grouped["size_class"], grouped["last"] + 1, minlength=CLASSES)
    assert (usage == state.usage).all()
    pages = metas["pages"][used].sum() * PAGE
    first = stack.linux.space[0].brk_base + PAGE
    assert stack.tally[0].heap_bytes == pages + max(heap.brk - first, 0)
