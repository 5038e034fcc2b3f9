"""Reserves: mapped addresses without access (PROT_NONE), as stretches by descending address, disjoint and not adjacent.

They count as reserved bytes, not as mapped bytes.
"""

from replay.allocators._stack import MARGIN, ask_for_room
from replay.jit.compiling import leaf


@leaf
def _highest_below(state, address):
    """Returns the index of the highest stretch that starts below `address`; the number of stretches if there is
    none."""
    low, high = 0, state.space[0].reserves
    while low < high:
        middle = (low + high) >> 1
        if state.reserves[middle].start < address:
            high = middle
        else:
            low = middle + 1
    return low


@leaf
def _insert(stack, index, start, end):
    space, reserves = stack.linux.space[0], stack.linux.reserves
    for moved in range(space.reserves, index, -1):
        reserves[moved].start, reserves[moved].end = reserves[moved - 1].start, reserves[moved - 1].end
    reserves[index].start, reserves[index].end = start, end
    space.reserves += 1
    if space.reserves + MARGIN > reserves.shape[0]:
        ask_for_room(stack)


@leaf
def _drop(state, index, count):
    space, reserves = state.space[0], state.reserves
    space.reserves -= count
    for moved in range(index, space.reserves):
        reserves[moved].start, reserves[moved].end = reserves[moved + count].start, reserves[moved + count].end


@leaf
def release_reserved(stack, start, end):
    """Removes [start, end) from the reserves; returns the number of its bytes that were reserved."""
    space, reserves = stack.linux.space[0], stack.linux.reserves
    first, released = _highest_below(stack.linux, end), 0
    index = first
    if index < space.reserves and reserves[index].end > end:
        reserved_end = reserves[index].end
        if reserves[index].start < start:
            _insert(stack, index, end, reserved_end)
            reserves[index + 1].end = start
            space.reserved_bytes -= end - start
            return end - start
        released += end - reserves[index].start
        reserves[index].start = end
        first += 1
        index += 1
    while index < space.reserves and reserves[index].start >= start:
        released += reserves[index].end - reserves[index].start
        index += 1
    if index < space.reserves and reserves[index].end > start:
        released += reserves[index].end - start
        reserves[index].end = start
    if index > first:
        _drop(stack.linux, first, index - first)
    space.reserved_bytes -= released
    return released


@leaf
def add_reserved(stack, start, end):
    """Adds [start, end) to the reserves; returns the number of its bytes that were not reserved."""
    space, reserves = stack.linux.space[0], stack.linux.reserves
    already = release_reserved(stack, start, end)
    space.reserved_bytes += end - start
    index = _highest_below(stack.linux, end)
    below = index < space.reserves and reserves[index].end == start
    above = index > 0 and reserves[index - 1].start == end
    if above and below:
        reserves[index - 1].start = reserves[index].start
        _drop(stack.linux, index, 1)
    elif above:
        reserves[index - 1].start = start
    elif below:
        reserves[index].end = end
    else:
        _insert(stack, index, start, end)
    return end - start - already
