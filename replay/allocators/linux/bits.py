"""Tables of bits in arrays of 64-bit words."""

import numpy as np

from replay.jit.compiling import inlined, leaf


@leaf
def get_bit(bits, index):
    return (bits[index >> 6] >> (index & 63)) & 1


@leaf
def _count_bits(word):
    """Returns the number of set bits of a word. The masks keep all intermediate values positive in int64."""
    low = word & 0xFFFFFFFF
    high = (word >> 32) & 0xFFFFFFFF
    low -= (low >> 1) & 0x55555555
    high -= (high >> 1) & 0x55555555
    low = (low & 0x33333333) + ((low >> 2) & 0x33333333)
    high = (high & 0x33333333) + ((high >> 2) & 0x33333333)
    both = ((low + (low >> 4)) & 0x0F0F0F0F) + ((high + (high >> 4)) & 0x0F0F0F0F)
    return ((both * 0x01010101) >> 24) & 0xFF


@inlined
def _mask(index, first, last):
    """Returns a mask of the bits first … last that are in word `index`."""
    mask = np.int64(-1)
    if index == first >> 6:
        mask <<= first & 63
    if index == last >> 6 and (last & 63) != 63:
        mask &= ~(np.int64(-1) << ((last & 63) + 1))
    return mask


@leaf
def set_bits(bits, first, last, value):
    """Sets bits first … last to `value` in place; returns the number of bits that changed."""
    changed = 0
    for index in range(first >> 6, (last >> 6) + 1):
        mask = _mask(index, first, last)
        word = bits[index]
        fresh = mask & ~word if value else mask & word
        if fresh != 0:
            changed += _count_bits(fresh)
            bits[index] = word ^ fresh
    return changed


@leaf
def copy_bits(source, target, first, last):
    """Sets the bits first … last of `target` that are set in `source`, in place; returns the number of bits that
    changed."""
    changed = 0
    for index in range(first >> 6, (last >> 6) + 1):
        fresh = _mask(index, first, last) & source[index] & ~target[index]
        if fresh != 0:
            changed += _count_bits(fresh)
            target[index] |= fresh
    return changed
