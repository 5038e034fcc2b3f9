"""Machine code for a combination of models: the loop, and the calls between events."""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from replay.allocators import (
    address,
    adopt,
    block_size,
    end_thread,
    foreign_sources,
    is_compiled,
    is_of_libc,
    of_libc,
    trim,
)
from replay.jit.compiling import entry, inlined
from replay.simulation.loop import GONE, ROW_BITS, ROW_MASK, ROWS_A_DOMAIN, simulate_rows, take_turn


@cache
def compiled_loop(models: tuple[ModuleType, ...]) -> Callable[..., tuple[int, int]]:
    """Returns the loop for these models: machine code if all models are compiled, else plain Python."""
    if all(is_compiled(model) for model in models):
        return entry(simulate_rows, foreign_sources(list(models)))
    return simulate_rows


def trim_libc(stack, resume):  # type: ignore[no-untyped-def]
    """Calls malloc_trim(0), or continues it."""
    return trim(stack.libc, stack, resume)


def end_libc_thread(stack, thread):  # type: ignore[no-untyped-def]
    """Ends the thread."""
    take_turn(stack, thread)
    end_thread(stack.libc, stack)


def adopt_small(stack, address, size):  # type: ignore[no-untyped-def]
    """Frees a block that is older than the trace."""
    adopt(stack.small, stack, address, size)


def collect_live_blocks(stack, blocks, allocations, begin_ns, live):  # type: ignore[no-untyped-def]
    """Fills in the columns of LiveBlocks that have rows. `allocations`: the ALLOCATION of each block, by number."""
    at = 0
    for number in range(blocks.shape[0]):
        size_and_row, place = blocks[number].size_and_row, blocks[number].place
        if size_and_row == GONE:
            continue
        is_small, known = not is_of_libc(place), allocations[number]
        if live.address.shape[0] or live.bytes.shape[0]:
            if is_small:
                found = address(stack.small, stack, place), block_size(stack.small, stack, place)
            else:
                found = address(stack.libc, stack, of_libc(place)), block_size(stack.libc, stack, of_libc(place))
            _set(live.address, at, found[0])
            _set(live.bytes, at, found[1])
        _set(live.is_small, at, is_small)
        _set(live.requested_bytes, at, size_and_row >> ROW_BITS)
        _set(live.domain, at, (size_and_row & ROW_MASK) // ROWS_A_DOMAIN)
        _set(live.block, at, number)
        _set(live.row, at, known.row)
        _set(live.allocated_ns, at, known.allocated_ns - begin_ns)
        _set(live.thread, at, known.thread)
        _set(live.site, at, known.site)
        at += 1


@inlined
def _set(column, at, value):  # type: ignore[no-untyped-def]
    if column.shape[0]:
        column[at] = value


@cache
def compiled_call(call: Callable[..., Any], models: tuple[ModuleType, ...]) -> Callable[..., Any]:
    """Returns one of the functions above, compiled for these models."""
    return entry(call, foreign_sources(list(models))) if all(map(is_compiled, models)) else call
