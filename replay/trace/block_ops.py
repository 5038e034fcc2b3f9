"""Classes of ops by their effect on a block. The functions take one op in kernels, and a column of ops in NumPy."""

from typing import Any

from replay.jit.compiling import inlined
from replay.trace.columns import Op

MALLOC, CALLOC, REALLOC, FREE, MEMALIGN = (int(op) for op in (Op.MALLOC, Op.CALLOC, Op.REALLOC, Op.FREE, Op.MEMALIGN))
"""The ops as plain integers. Kernels and NumPy compare enum members much more slowly."""
LAST_BLOCK_OP = MEMALIGN
"""Ops up to this one concern a block. Rows of all other ops have no block."""


@inlined
def concerns_block(op: Any) -> Any:
    """Returns whether the op allocates, reallocates or frees a block."""
    return op <= LAST_BLOCK_OP


@inlined
def allocates(op: Any) -> Any:
    """Returns whether the op makes a new block live."""
    return (op <= CALLOC) | (op == MEMALIGN)


@inlined
def requests(op: Any) -> Any:
    """Returns whether the op requests bytes: every op that concerns a block, except free."""
    return (op <= REALLOC) | (op == MEMALIGN)
