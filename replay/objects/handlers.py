"""Regions of the code in which an exception has a handler, and what the compiler notes about `try`.

    CATCH      the statements of a `try` with `except`: the exception goes to the handler at `target`
    FINALLY    those of a `try` with `finally`: the exception goes to the statements of `finally` at `target`
    NAME       the statements of a handler with `as`: an exception unbinds the variable, and leaves the handler
    HANDLER    a handler, or the statements of `finally` after an exception: another exception ends the handled one

An exception leaves its region to the one around, `outer`; if this is 0, for none, the function ends. `depth` is the
number of values that remain on the stack.
"""

from typing import NamedTuple

from replay.jit.arrays import record
from replay.objects.language import Statement
from replay.support.yaml_documents import Location

REGION = record("kind", "target", "depth", "variable", "outer")
KIND, TARGET, DEPTH, VARIABLE, OUTER = range(5)
"""Fields of a region."""
CATCH, FINALLY, NAME, HANDLER, LOOP = range(1, 6)
HANDLER_VALUES = 3
"""Values on the stack of a handler: what was handled before. From 3.11 on CPython has one."""
FINALLY_VALUES = 6
"""Values on the stack of `finally` after an exception: these and the exception, up to 3.10."""
HAS_RESULT, JUMPS_BACK = 1, 2
"""Flags of LEAVE_HANDLER: the value on the stack is a result; CPython 3.12 jumps back after it."""
COLD, RETURN_COPY, EXCEPTION_COPY, DEAD = 1, 2, 4, 8
"""Flags of instructions: they run after an exception only; in `finally` before a `return`; in `finally` after an
exception; they never run."""
TRIES_BITS = 8
"""Above the flags is the number of `try` that start with an instruction."""
UNKNOWN = 2
IN_CELL = 1 << 50
"""A variable of a handler is its slot, counted from 1, or a cell: this, the slot of the cell from 3.11 on, and above
SLOT_BITS that up to 3.10."""
CLASS_BITS, LENGTH_MASK, NAMED_BEFORE = 48, 0xFF, 1 << 60
"""Of the argument of MATCH: bits of classes; above them the length of the tuple of classes, and whether the `except`
before it has a variable."""


class Block(NamedTuple):
    """What a `return` leaves: a loop, a handler, or a `try` with `finally`, which is in `region`."""

    kind: int
    variable: int = 0
    region: int = 0
    body: list[Statement] = []  # noqa: RUF012
    place: Location = ()
