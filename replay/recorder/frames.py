"""Offsets in CPython's structs, by version, with which a hook finds the running code and so the call site.

Offsets are in bytes, on 64 bits, as a compiler computes them from CPython's headers:

    thread state    PyThreadState in `cpython/pystate.h`; up to 3.12 the frame is one step further, in its _PyCFrame
    frame           _PyInterpreterFrame and enum _frameowner in `internal/pycore_frame.h`; since 3.14 in
                    `internal/pycore_interpframe_structs.h`, and Py_TAG_BITS in `internal/pycore_stackref.h`
    code            PyCodeObject in `cpython/code.h`; its length in code units is the ob_size of `object.h`
    str             PyASCIIObject and PyCompactUnicodeObject in `cpython/unicodeobject.h`
    bytes           PyBytesObject in `cpython/bytesobject.h`

Offsets do not change within a minor version. The recorded program tests them on itself before the recording.
"""

from typing import NamedTuple

INTERPRETER_AT = 16
"""In the thread state: interp."""
TYPE_AT, ITEMS_AT = 8, 16
"""In any object: ob_type, and ob_size."""
FILENAME_AT, QUALNAME_AT, LINE_TABLE_AT = 112, 128, 136
"""In the code object: co_filename, co_qualname, co_linetable."""
STR_LENGTH_AT, STR_STATE_AT = 16, 32
STR_KIND_BIT, STR_COMPACT_BIT, STR_ASCII_BIT = 2, 5, 6
"""Bits in the state of a str. The kind has three bits: the number of bytes for each character."""
BYTES_AT = 32
UNIT_BYTES = 2
"""Bytes of an instruction and of an entry of its inline cache."""
OWNED_BY_GENERATOR, OWNED_BY_C = 1, 3
"""Owners of frames. Frames owned by C run no Python code; since 3.14, higher numbers are C as well."""


class Layout(NamedTuple):
    """The offsets that differ between versions."""

    state_to_frame: tuple[int, ...]
    """Offsets of the pointers from the thread state to the running frame, in this order."""
    frame_code: int
    frame_previous: int
    frame_instruction: int
    """A pointer into the code: `prev_instr` up to 3.12, `instr_ptr` since."""
    frame_owner: int
    """One byte."""
    first_line: int
    first_traceable: int
    """The first unit of a complete frame. Before it, the call site is in the calling frame."""
    instructions: int
    ascii_text: int
    other_text: int
    """In a str: offset of the characters of an ASCII text, and of any other text. Subclasses have a pointer there."""
    state_is_own: bool
    """Whether the current thread state belongs to the calling thread, not to the holder of the GIL."""
    code_tags: int = 0
    """Tag bits in a frame's pointer to its code, for reference counting."""


LAYOUTS: dict[tuple[int, ...], Layout] = {
    (3, 11): Layout((56, 8), 32, 48, 56, 69, 72, 168, 184, 48, 72, state_is_own=False),
    (3, 12): Layout((56, 0), 0, 8, 56, 70, 68, 176, 192, 40, 56, state_is_own=True),
    (3, 13): Layout((72,), 0, 8, 56, 70, 68, 184, 200, 40, 56, state_is_own=True),
    (3, 14): Layout((72,), 0, 8, 56, 74, 68, 192, 208, 40, 56, state_is_own=True, code_tags=3),
    (3, 15): Layout((72,), 0, 8, 56, 74, 68, 192, 208, 40, 56, state_is_own=True, code_tags=3),
}
