"""Where CPython keeps which code is running, version by version: what a hook has to know to tell who allocates.

All are offsets in bytes, on 64 bits, as the compiler says of CPython's own headers:

    thread state    PyThreadState in `cpython/pystate.h`; up to 3.12 the frame is one step further, in its _PyCFrame
    frame           _PyInterpreterFrame and enum _frameowner in `internal/pycore_frame.h`; since 3.14 in
                    `internal/pycore_interpframe_structs.h`, and Py_TAG_BITS in `internal/pycore_stackref.h`
    code            PyCodeObject in `cpython/code.h`; its length in code units is the ob_size of `object.h`
    str             PyASCIIObject and PyCompactUnicodeObject in `cpython/unicodeobject.h`
    bytes           PyBytesObject in `cpython/bytesobject.h`

They do not change within a minor version. A program tries them on itself before it records by them.
"""

from typing import NamedTuple

INTERPRETER_AT = 16
"""In the thread state."""
TYPE_AT, ITEMS_AT = 8, 16
"""In any object: ob_type, and ob_size."""
FILENAME_AT, QUALNAME_AT, LINE_TABLE_AT = 112, 128, 136
"""In the code: co_filename, co_qualname, co_linetable."""
STR_LENGTH_AT, STR_STATE_AT = 16, 32
STR_KIND_BIT, STR_COMPACT_BIT, STR_ASCII_BIT = 2, 5, 6
"""In the state; the kind takes three bits and is the bytes a character."""
BYTES_AT = 32
UNIT_BYTES = 2
"""Of an instruction, or of an entry of its inline cache."""
OWNED_BY_GENERATOR, OWNED_BY_C = 1, 3
"""Of C's own frames, which run no code; since 3.14 higher owners are C as well."""


class Layout(NamedTuple):
    """What differs from version to version."""

    state_to_frame: tuple[int, ...]
    """Steps from the thread state to the running frame, each a pointer to follow."""
    frame_code: int
    frame_previous: int
    frame_instruction: int
    """A pointer into the code: `prev_instr` up to 3.12, `instr_ptr` since."""
    frame_owner: int
    """A byte."""
    first_line: int
    first_traceable: int
    """A frame that has not come to this unit yet is incomplete: its caller is who allocates."""
    instructions: int
    ascii_text: int
    other_text: int
    """In a str: where the characters of an ASCII text are, and of any other; of a subclass's, a pointer to them."""
    state_is_own: bool
    """Whether the current thread state is that of the thread itself, and not of the holder of the GIL."""
    code_tags: int = 0
    """Bits of a frame's pointer to its code that tell how the reference is counted."""


LAYOUTS: dict[tuple[int, ...], Layout] = {
    (3, 11): Layout((56, 8), 32, 48, 56, 69, 72, 168, 184, 48, 72, state_is_own=False),
    (3, 12): Layout((56, 0), 0, 8, 56, 70, 68, 176, 192, 40, 56, state_is_own=True),
    (3, 13): Layout((72,), 0, 8, 56, 70, 68, 184, 200, 40, 56, state_is_own=True),
    (3, 14): Layout((72,), 0, 8, 56, 74, 68, 192, 208, 40, 56, state_is_own=True, code_tags=3),
    (3, 15): Layout((72,), 0, 8, 56, 74, 68, 192, 208, 40, 56, state_is_own=True, code_tags=3),
}
