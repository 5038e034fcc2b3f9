"""Maximum quantities in traces and workloads."""

MAX_SIZE = 1 << 47
"""Bytes of user address space on x86-64, the maximum size of an allocation."""
MAX_SPAN = 10**18
"""Thirty years in nanoseconds. A sum of several such times fits into 64 bits."""
