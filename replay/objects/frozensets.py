"""Constant frozensets of integers, which CPython's compiler makes of the constants of a set."""

from collections.abc import Sequence

SLOTS_INSIDE = 8
PROBES = 9
PERTURB_SHIFT = 5


def frozenset_slots(numbers: Sequence[int]) -> tuple[int | None, ...]:
    """Returns the slots of a frozenset to which these integers are added in turn."""
    slots: list[int | None] = [None] * SLOTS_INSIDE
    for number in numbers:
        slots[_place(slots, number)] = number
        used = len(slots) - slots.count(None)
        if used * 5 >= (len(slots) - 1) * 3:
            elements = [element for element in slots if element is not None]
            slots = [None] * (1 << (4 * used).bit_length())
            for element in elements:
                slots[_place(slots, element)] = element
    return tuple(slots)


def _place(slots: Sequence[int | None], number: int) -> int:
    """Returns the slot of an integer, or the first free slot of its sequence, as `replay.objects.sets` does."""
    mask, perturb, slot = len(slots) - 1, number, number & (len(slots) - 1)
    while True:
        for place in range(slot, slot + 1 + (PROBES if slot + PROBES <= mask else 0)):
            if slots[place] in (None, number):
                return place
        perturb >>= PERTURB_SHIFT
        slot = (slot * 5 + 1 + perturb) & mask
