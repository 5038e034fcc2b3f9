"""Prepares hooks with object types in the recorded program, and names the program's types.

Like `replay.recorder.tap` it is copied into recorded programs, so it imports the standard library only.

A hook reads the type of a block of obj where CPython keeps it: behind the headers of the object, whose length follows
from the type. Only pointers to known types count. They are in a hash table, by address:

    before the recording    all types are found from `object` on, by `__subclasses__`
    heap types              are blocks of obj themselves. A large block becomes a candidate when it is allocated. Once
                            it is a complete type it gets a number. The number ends when the type is freed
    static types            of modules that are imported later never die. The hook records the pointer, and the type
                            is named at the end, when all types are found again

The writer learns a type from a note:

    note    words: TYPE_NOTE plus the number, address, flags and layout; then module and qualified name, which are
            texts as in `replay.recorder.sites`
"""

import ctypes
import gc
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from replay.recorder.tap import Hooks

TYPE_NOTE = 1 << 63
"""Added to the first word of a note about a type."""
NOTE_WORDS = 5
BASIC_SIZE_AT, FLAGS_AT, TYPE_DICT_AT = 32, 168, 264
"""In a type: tp_basicsize, tp_flags, tp_dict. The same in all versions that are recorded."""
HAS_MODULE = 1 << 62
"""Added to the flags in a note: the first text is the module. Otherwise the type has none."""
LEAST_SHIFT, LEAST_MOST, HEADER_SHIFT, IS_TYPE_SHIFT = 32, (1 << 24) - 1, 56, 58
"""Bits of a value in the table, above the number: the bytes of the smallest block with an object of the type, headers
included; the number of headers of 16 bytes; whether the objects are types. A note has them in its flags."""
LAYOUT_BITS, IS_TYPE_BIT = (1 << IS_TYPE_SHIFT + 1) - (1 << LEAST_SHIFT), 1 << IS_TYPE_SHIFT
KNOWN_TYPE = 1 << 47
"""In a free of a known type: added to the bytes of the smallest block. Unknown pointers are lower."""
BEHIND_HEADER = 1
"""Added to an unknown pointer that follows a header of 16 bytes."""
HEAP_TYPE, READY, COLLECTED, IS_TYPE = 1 << 9, 1 << 12, 1 << 14, 1 << 31
"""Bits of tp_flags: a heap type; complete; its objects have the collector's header; its objects are types."""

_AT_POINTERS = (1 << 12) + 1024
"""In the context, after the words of `replay.recorder.sites`."""
AT_TYPE_TABLE, AT_TYPES, AT_NEXT_TYPE, AT_LEAST_BYTES = range(_AT_POINTERS, _AT_POINTERS + 32, 8)
"""The table and its number of addresses; the next number; the bytes of the smallest block with a heap type."""
AT_DICT_ITEM, AT_MODULE_KEY, AT_STR_TYPE, AT_QUALNAME = range(_AT_POINTERS + 32, _AT_POINTERS + 64, 8)
"""PyDict_GetItem, the str `__module__`, the type str, the offset of ht_qualname in a heap type."""
AT_GENERATION_KEY, AT_COLLECTED_KEY = _AT_POINTERS + 64, _AT_POINTERS + 72
"""The str `generation` and `collected`."""
AT_COLLECTING, AT_CANDIDATES, AT_CANDIDATE = _AT_POINTERS + 80, _AT_POINTERS + 88, _AT_POINTERS + 96
"""Whether a collection runs; the number of candidates; their blocks."""
CANDIDATES_MOST = 64
TABLE_BITS = 16
"""2^16 slots: the address of a type, and its number with further bits; 0 if the type was freed. 1 MiB."""

COLLECTOR_WORDS = 11
"""thresholds, enabled, counts, old objects, full collections, frozen objects, pages of tracked objects."""

_READ_WRITE, _PRIVATE_ANONYMOUS, _WIPEONFORK, _DONTNEED = 3, 0x22, 18, 4
_MODULE, _QUALNAME = type.__dict__["__module__"], type.__dict__["__qualname__"]
_TYPE_BYTES: int = type.__dict__["__basicsize__"].__get__(type)


class _Probe:
    """A heap type whose qualified name differs from its name, to find the qualified name in a type."""

    class Inner:
        pass


def prepare(hooks: "Hooks", collector_at: int) -> None:
    """Sets up the hooks before each recording and names all types. Stores the collector's state at `collector_at`."""
    python = ctypes.pythonapi
    words: tuple[tuple[int, int], ...] = (
        (AT_TYPE_TABLE, _empty_table(_word(hooks.context + AT_TYPE_TABLE).value)),
        (AT_TYPES, 0),
        (AT_NEXT_TYPE, 1),
        (AT_LEAST_BYTES, _TYPE_BYTES),
        (AT_DICT_ITEM, ctypes.cast(python.PyDict_GetItem, ctypes.c_void_p).value or 0),
        (AT_MODULE_KEY, id(sys.intern("__module__"))),
        (AT_GENERATION_KEY, id(sys.intern("generation"))),
        (AT_COLLECTED_KEY, id(sys.intern("collected"))),
        (AT_STR_TYPE, id(str)),
        (AT_QUALNAME, _qualname_offset()),
        (AT_COLLECTING, 0),
        (AT_CANDIDATES, 0),
    )
    for at, value in words:
        _word(hooks.context + at).value = value
    name_types(hooks)
    state = (*gc.get_threshold(), int(gc.isenabled()), *gc.get_count(), *_objects())
    for index, value in enumerate(state):
        _word(collector_at + 8 * index).value = value


def name_types(hooks: "Hooks") -> None:
    """Writes a note about every type of the program. Types that have a number keep it."""
    waiting: list[type] = [object]
    seen, found = {id(object)}, list[object]()
    while waiting:
        each = waiting.pop()
        found += each, _text(_MODULE, each), _text(_QUALNAME, each)
        derived: type
        for derived in type.__subclasses__(each):
            if id(derived) not in seen:
                seen.add(id(derived))
                waiting.append(derived)
    ctypes.PYFUNCTYPE(None, ctypes.py_object)(hooks.entries["note_types"])(found)


def _text(getter: object, each: type) -> str:
    """Returns an attribute of a type without code of its metaclass; an empty text if it is not a str."""
    try:
        text = getter.__get__(each)  # type: ignore[attr-defined]
    except AttributeError:
        return ""
    return text if type(text) is str else ""


def _qualname_offset() -> int:
    """Returns the offset of ht_qualname, which is behind the fields of a static type."""
    wanted = id(_QUALNAME.__get__(_Probe.Inner))
    for at in range(TYPE_DICT_AT, _TYPE_BYTES, 8):
        if _word(id(_Probe.Inner) + at).value == wanted:
            return at
    raise OSError(f"types cannot be recorded with this build of CPython {sys.version.split()[0]}")


def _objects() -> tuple[int, int, int, int]:
    """Returns the number of objects in the oldest generation, how often it was collected, the number of frozen objects,
    and that of pages of 4 KiB with the collector's headers, which are 16 bytes before objects."""
    pages = len({id(each) - 16 >> 12 for each in gc.get_objects()})
    return len(gc.get_objects(2)), gc.get_stats()[2]["collections"], gc.get_freeze_count(), pages


def _empty_table(table: int) -> int:
    """Returns the address of the table, filled with zeros. Maps it if `table` is 0."""
    length, libc = 16 << TABLE_BITS, ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if not table:
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        table = libc.mmap(None, length, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        if table == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), "the table of types cannot be mapped")
        libc.madvise(table, length, _WIPEONFORK)
    libc.madvise(table, length, _DONTNEED)
    return table


def _word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)
