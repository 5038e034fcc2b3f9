"""Prepares hooks with call sites in the recorded program, and tests them before the recording.

Like `replay.recorder.tap` it is copied into recorded programs, so it imports only the standard library.

The number of a call site identifies a code object (of a function, a module …) and a unit in it: each new code gets as
many consecutive numbers as it has units. A hook finds the first number in a hash table by the address of the code. For
a new code, the hook first writes a note for the writer:

    note    words: first number, units, first line; then file name, function name and line table. Each of these is a
            word with its length in bytes and, in the lowest `WIDTH_BITS`, the bytes for each character, followed by the
            characters, padded to whole words. Notes are a ring buffer in the shared memory

So hooks keep no reference to a code. When a code object is freed, its numbers become invalid; the next code at the same
address gets new ones. Its note is in the writer or in shared memory, even if the program is killed.
"""

import ctypes
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from replay.recorder.tap import Hooks

AT_NOTES_HEAD, AT_NOTES_TAIL = 448, 512
"""In the header of the shared memory: bytes of notes that were written, and bytes that the writer has read."""
NOTE_WORDS, WIDTH_BITS = 6, 3

_AT_POINTERS = (1 << 12) + 320
"""In the context, after the words of hooks without call sites."""
AT_THREAD_STATE, AT_OWN_STATE, AT_INTERPRETER, AT_CODE_TYPE = range(_AT_POINTERS, _AT_POINTERS + 32, 8)
"""Functions that return the current thread state and the thread's own; the recorded interpreter; the type of code."""
AT_TABLE, AT_CODES, AT_NEXT_NUMBER, AT_EVERY, AT_BYTES = range(_AT_POINTERS + 64, _AT_POINTERS + 104, 8)
"""The table and its number of addresses; the next number; the bytes between samples; a counter for each domain: raw
counts requested bytes, mem and obj the bytes until the next sample."""
TABLE_BITS = 18
"""2^18 slots: the address of a code and its first number, 0 if the code was freed. 4 MiB, of which few are resident."""

_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22
_DONTNEED, _WIPEONFORK = 4, 18


def prepare(hooks: "Hooks", shared: int, notes_at: int, every: int) -> None:
    """Sets up the hooks before each recording and tests them: they must find this function as the call site.

    `every`: 1 for the site of every call, else the bytes between sampled calls.
    """
    python, remaining = ctypes.pythonapi, every if every > 1 else 0
    interpreter = python["PyInterpreterState_Get"]
    interpreter.restype = ctypes.c_void_p
    current = "PyThreadState_GetUnchecked" if sys.version_info >= (3, 13) else "_PyThreadState_UncheckedGet"
    code = prepare.__code__
    for at, value in (
        (AT_THREAD_STATE, _address_of(python[current])),
        (AT_OWN_STATE, _address_of(python["PyGILState_GetThisThreadState"])),
        (AT_INTERPRETER, interpreter()),
        (AT_CODE_TYPE, id(type(code))),
        (AT_TABLE, _empty_table(_word(hooks.context + AT_TABLE).value)),
        (AT_CODES, 0),
        (AT_NEXT_NUMBER, 1),
        (AT_EVERY, every),
        *((AT_BYTES + 8 * domain, remaining if domain else 0) for domain in range(3)),
    ):
        _word(hooks.context + at).value = value
    number = ctypes.PYFUNCTYPE(ctypes.c_uint64)(hooks.entries["find_site"])()
    if not (0 < number <= len(code.co_code) // 2 and _is_noted(code, shared + notes_at)):
        raise OSError(f"call sites cannot be recorded with this build of CPython {sys.version.split()[0]}")


def _empty_table(table: int) -> int:
    """Returns the address of the table, filled with zeros. Maps it if `table` is 0."""
    length, libc = 16 << TABLE_BITS, ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if not table:
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        table = libc.mmap(None, length, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        if table == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "the table of call sites cannot be mapped")
        libc.madvise(table, length, _WIPEONFORK)
    libc.madvise(table, length, _DONTNEED)
    return table


def _word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)


def _address_of(function: "ctypes._NamedFuncPointer") -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _is_noted(code: "CodeType", at: int) -> bool:
    """Whether the first note, at the address `at`, describes `code` correctly."""
    pieces = [word.to_bytes(8, "little") for word in (1, len(code.co_code) // 2, code.co_firstlineno)]
    for text in (code.co_filename, code.co_qualname):
        width = 1 + (max(text) > "\xff") + 2 * (max(text) > "\uffff")
        content = text.encode(("", "latin-1", "utf-16-le", "", "utf-32-le")[width], "surrogatepass")
        pieces += [(len(content) << WIDTH_BITS | width).to_bytes(8, "little"), content]
    pieces += [(len(code.co_linetable) << WIDTH_BITS | 1).to_bytes(8, "little"), code.co_linetable]
    for piece in pieces:
        if ctypes.string_at(at, len(piece)) != piece:
            return False
        at += len(piece) + -len(piece) % 8
    return True
