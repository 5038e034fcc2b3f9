"""The columns of a trace. `Columns` declares each of them once; all other code reads its names and types from here.

A field without a default is a required column. An optional column has the default None and a `null`. Formats, edits
and the digest follow these declarations, so a further optional column is one more field here. `docs/trace-format.md`
has the same table, which a test compares.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, NamedTuple, get_type_hints

import numpy as np

NO_SITE = (1 << 32) - 1
"""In `Events.site`: the call site is unknown (null in a file)."""
NO_TYPE = (1 << 32) - 1
"""In `Events.type`: the block is not an object, or its type is unknown (null in a file)."""
NO_ALIGNMENT = 0
"""In `Events.alignment`: the event is not a memalign (null in a file)."""


class Op(IntEnum):
    """The operation of an event. Ops from GC_START on concern no block (see `block_ops`).

    Ops from ARENA_MAPPED on are observations of the real allocator, for comparisons; they are not simulated.
    """

    MALLOC = 0
    CALLOC = 1
    REALLOC = 2
    FREE = 3
    MEMALIGN = 4
    """An allocation at a multiple of `alignment`: memalign, posix_memalign, aligned_alloc or valloc of the C
    library."""
    GC_START = 16
    GC_END = 17
    THREAD_END = 18
    MARK = 32
    ARENA_MAPPED = 48
    """pymalloc mapped an arena. `size` is its bytes, `address` its start."""
    ARENA_UNMAPPED = 49
    FOREIGN_FREE = 50
    """A free of a block that was allocated before the recording, or by an excluded thread. Its size is unknown, so
    `size` is 0."""
    LIVE_OBJECT = 51
    """An object that was live when the program ended. `block` names it, `type` is its type, `size` is 1 if the
    collector tracked it."""


class Domain(IntEnum):
    """The API that the program called."""

    RAW = 0
    MEM = 1
    OBJ = 2
    LIBC = 3


@dataclass(frozen=True)
class Column:
    """Declares one column. `file_type` and `memory_type` are integer types, by their names in NumPy and Arrow."""

    file_type: str
    memory_type: str
    meaning: str
    """The text in `docs/trace-format.md`, in Markdown."""
    written_by: str = "all"
    null: int | None = None
    """The value in memory that represents a null. Required columns have no nulls."""
    table: str | None = None
    """The field of `Metadata` that the values are indexes of, if any. Merging traces renumbers them."""
    kept_by_edits: bool = True
    """Whether a value stays valid when other events are removed or added."""


class Columns(NamedTuple):
    """The registry: one field a column, required ones first."""

    time_ns: Annotated[
        np.ndarray,
        Column(
            "int64",
            "int64",
            "nanoseconds since the trace began, or since any moment before (the epoch, the boot); never falls. What"
            " replay prints counts from the first event",
        ),
    ]
    thread: Annotated[
        np.ndarray, Column("uint32", "uint32", "any number; the same number is the same thread, until its thread end")
    ]
    op: Annotated[
        np.ndarray,
        Column("uint8", "uint8", " · ".join(f"{op:d} {op.name.lower().replace('_', ' ')}" for op in Op)),
    ]
    domain: Annotated[
        np.ndarray,
        Column(
            "uint8",
            "uint8",
            "the API called: 0 raw (`PyMem_RawMalloc`) · 1 mem (`PyMem_Malloc`) · 2 obj (`PyObject_Malloc`) · 3 libc"
            " (`malloc`, past Python's API)",
        ),
    ]
    block: Annotated[np.ndarray, Column("uint32", "uint32", "names a live block; 0 where the op concerns no block")]
    size: Annotated[
        np.ndarray,
        Column(
            "uint64",
            "int64",
            "requested bytes, at most 2^47; 0 for a free; for a mark, the index of the phase that begins; for an arena,"
            " its bytes; for a collection with types, its generation at the start and the objects that it found"
            " at the end",
        ),
    ]
    address: Annotated[
        np.ndarray | None,
        Column(
            "uint64",
            "uint64",
            "where the real allocator put the block; null where unknown",
            written_by="`replay record`, unless `--no-addresses`; imports of logs with addresses",
            null=0,
            kept_by_edits=False,
        ),
    ] = None
    site: Annotated[
        np.ndarray | None,
        Column(
            "uint32",
            "uint32",
            "the call site: index into the metadata's `sites`; null where unknown",
            written_by="`replay record --sites`; imports of logs with call sites",
            null=NO_SITE,
            table="sites",
        ),
    ] = None
    type: Annotated[
        np.ndarray | None,
        Column(
            "uint32",
            "uint32",
            "in a free, a foreign free or a live object, the Python type of the block: index into the metadata's"
            " `types`; null where unknown, for blocks that are no objects, and for all other operations",
            written_by="`replay record --types`",
            null=NO_TYPE,
            table="types",
        ),
    ] = None
    alignment: Annotated[
        np.ndarray | None,
        Column(
            "uint32",
            "uint32",
            "of a memalign, the alignment in bytes: a power of two; null for all other operations",
            written_by="imports of tables with memaligns",
            null=NO_ALIGNMENT,
        ),
    ] = None


COLUMNS: dict[str, Column] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Columns, include_extras=True).items()
}
"""The declarations by name, in the order of the fields."""
REQUIRED = tuple(name for name in COLUMNS if name not in Columns._field_defaults)
OPTIONAL = tuple(Columns._field_defaults)
