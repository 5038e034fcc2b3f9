"""What the ops of a trace do to blocks: for one op in a kernel, and for a column of them in NumPy."""

from typing import Any

from replay.jit.compiling import inlined
from replay.trace.columns import Op

MALLOC, CALLOC, REALLOC, FREE, MEMALIGN = (int(op) for op in (Op.MALLOC, Op.CALLOC, Op.REALLOC, Op.FREE, Op.MEMALIGN))
"""As plain numbers: kernels and NumPy compare members of an enum far slower."""
LAST_BLOCK_OP = MEMALIGN
"""Ops up to this one concern a block; rows of all others have none."""


@inlined
def concerns_block(op: Any) -> Any:
    """Whether the event allocates, moves or frees a block."""
    return op <= LAST_BLOCK_OP


@inlined
def allocates(op: Any) -> Any:
    """Whether a new block becomes live."""
    return (op <= CALLOC) | (op == MEMALIGN)


@inlined
def requests(op: Any) -> Any:
    """Whether the program requests a number of bytes: of all ops that concern a block, only a free does not."""
    return (op <= REALLOC) | (op == MEMALIGN)
