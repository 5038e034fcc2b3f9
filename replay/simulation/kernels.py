"""Machine code for a combination of models: the loop, and the calls between events."""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

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
from replay.jit.compiling import entry
from replay.simulation.loop import simulate_rows, take_turn


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


def locate_blocks(stack, blocks, live):  # type: ignore[no-untyped-def]
    """Fills in `address`, `bytes` and `is_small` of rows of LOCATED, in place."""
    for index in range(live.shape[0]):
        found = live[index]
        place = blocks[np.uint64(found.block)].place
        found.is_small = not is_of_libc(place)
        if found.is_small:
            found.address, found.bytes = address(stack.small, stack, place), block_size(stack.small, stack, place)
        else:
            found.address = address(stack.libc, stack, of_libc(place))
            found.bytes = block_size(stack.libc, stack, of_libc(place))


@cache
def compiled_call(call: Callable[..., Any], models: tuple[ModuleType, ...]) -> Callable[..., Any]:
    """Returns one of the functions above, compiled for these models."""
    return entry(call, foreign_sources(list(models))) if all(map(is_compiled, models)) else call
