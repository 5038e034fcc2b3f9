"""Call sites, in the recorded program: what hooks need to tell them, and a trial before they are relied on.

Like `replay.recorder.tap` it is copied into recorded programs, so it imports the standard library only.

A call site is a number: codes (the code objects of functions, modules …) that are met get one after the other as many
numbers as they have units, so that a number says which code and where in it. A hook finds the numbers of a code by its
address in a table. Where that is new, it first writes a note, from which the writer reads all there is to say of it:

    note    words: first number, units, first line; the file's name, the function's and the line table, each as a word
            with its bytes and, in the lowest `WIDTH_BITS`, the bytes a character, and behind that the text, filled up
            to whole words. Notes follow one another and go round in their place in the shared memory

So hooks keep no reference to a code. When one dies, its free takes its numbers away; the next code at the same address
gets others. What was told of it is in the writer's hands, or in shared memory, even if the program is killed.
"""

import ctypes
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    from replay.recorder.tap import Hooks

AT_NOTES_HEAD, AT_NOTES_TAIL = 448, 512
"""In the header of the shared memory: bytes of notes that were written, and that the writer has read."""
NOTE_WORDS, WIDTH_BITS = 6, 3

_AT_POINTERS = (1 << 12) + 320
"""In the context, behind what plain hooks need."""
AT_THREAD_STATE, AT_OWN_STATE, AT_INTERPRETER, AT_CODE_TYPE = range(_AT_POINTERS, _AT_POINTERS + 32, 8)
"""Functions that give the current thread state and a thread's own; the interpreter that is recorded; code's type."""
AT_TABLE, AT_CODES, AT_NEXT_NUMBER, AT_EVERY, AT_BYTES = range(_AT_POINTERS + 64, _AT_POINTERS + 104, 8)
"""The table and how many addresses it holds; the next number; one call in how many bytes, and how far each of the three
domains is: raw has the bytes asked for so far, mem and obj those that are left until the next."""
TABLE_BITS = 18
"""2^18 addresses of codes, each with its first number, or 0 if no code lives there: 4 MiB, touched where needed."""

_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22
_DONTNEED, _WIPEONFORK = 4, 18


def prepare(hooks: "Hooks", shared: int, notes_at: int, every: int) -> None:
    """Before each recording: lays out what the hooks need, and has them tell this very function.

    `every` is 1 for every call's site, or one call in how many bytes.
    """
    python, left = ctypes.pythonapi, every if every > 1 else 0
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
        *((AT_BYTES + 8 * domain, left if domain else 0) for domain in range(3)),
    ):
        _word(hooks.context + at).value = value
    number = ctypes.PYFUNCTYPE(ctypes.c_uint64)(hooks.entries["find_site"])()
    if not (0 < number <= len(code.co_code) // 2 and _is_noted(code, shared + notes_at)):
        raise OSError(f"call sites cannot be told in this build of CPython {sys.version.split()[0]}")


def _empty_table(table: int) -> int:
    """The table's place, all zeros; where it is 0, there is none yet."""
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
    """Whether the first of all notes, at that address, says of a code what is true."""
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
