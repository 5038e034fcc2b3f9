"""How large a quantity can be, in traces and in workloads alike."""

MAX_SIZE = 1 << 47
"""Bytes of user address space on x86-64; nothing larger can have been allocated."""
MAX_SPAN = 10**18
"""Thirty years in nanoseconds: a sum of several still fits 64 bits."""
