"""The part of the recorder that lives in the recorded program: sets the hooks, and takes them off again.

It is a file of its own, without imports from replay and without anything but ctypes, gc, os and sys: what is imported
here, the program finds imported already. The hooks themselves are machine code that `replay.recorder.hooks` made; this
file puts them into memory, tells them where things are, and hands them to CPython.

Two pieces of memory are shared with that code, both laid out by the numbers below (bytes from the start).

    shared     a memory file that writer and program map. A header, the names of marks, the machine code on its way
               here, and a ring of records. HEAD counts the records claimed by the program, TAIL those that the writer
               is done with. A record is four words: PACKED (size, op, domain and the lap of the ring, stored last),
               time, thread, address
    context    private memory of the program: a page that the kernel wipes in a forked child, so that nothing is
               recorded there; a page of pointers; the code. Mapped once and never unmapped, for a thread may be in it
"""

import ctypes
import gc
import os
import sys

MALLOC, CALLOC, FREE, REALLOC_FROM, REALLOC_TO, REALLOC_FAILED = range(6)
ARENA_MAPPED, ARENA_UNMAPPED, GC_START, GC_END, MARK = range(6, 11)
"""What a record tells. A realloc is two: the old address before it happens, the new one or the failure after."""

RAW, MEM, OBJ = range(3)

POOL_BYTES = 1 << 14
"""pymalloc's pools, in every CPython that is recorded."""
OLDEST = (3, 11)
RECORD_BYTES = 32
RING_BITS = 22
"""2^22 records, 128 MiB: what a busy program calls in a fifth of a second, while the writer is kept from its work."""
SIZE_BITS, OP_BITS, DOMAIN_BITS, LAP_BITS = 48, 4, 2, 10
"""Of PACKED, from the lowest. The lap counts from 1, so that a ring full of zeros holds no record."""

AT_PROGRAM, AT_CODE_BYTES, AT_HEAD, AT_TAIL, AT_ENDED, AT_DESERTED, AT_CLEAN = 0, 8, 64, 128, 192, 200, 208
"""The header: process that records, length of the code, counts, whether the program stopped recording, whether it
found the writer gone, whether it started clean. Counts have cache lines of their own."""
AT_OFFSETS = 256
"""Where in the code each of ENTRIES begins."""
NAMES_AT, CODE_AT, RING_AT = 1 << 12, 1 << 18, (1 << 18) + (1 << 16)
SHARED_BYTES = RING_AT + (RECORD_BYTES << RING_BITS)

AT_ACTIVE, AT_INSIDE = 0, 64
"""The wiped page: whether to record; the thread that is inside a call of the domains mem and obj."""
POINTERS_AT, TEXT_AT = 1 << 12, 1 << 13
AT_SHARED, AT_WRITER, AT_KILL, AT_SLEEP, AT_CLOCK, AT_ERRNO, AT_NONE, AT_INCREF = range(
    POINTERS_AT, POINTERS_AT + 64, 8
)
AT_PAUSE = POINTERS_AT + 64
"""A timespec."""
AT_ARENAS, AT_ARENA, AT_ARENA_BYTES = range(POINTERS_AT + 80, POINTERS_AT + 104, 8)
"""How many were mapped so far, and the last of them."""
AT_FILLING = POINTERS_AT + 104
"""The last of the blocks that fill pools for a clean start."""
AT_ORIGINALS = POINTERS_AT + 128
"""Five words a domain: context, malloc, calloc, realloc, free; then three of the arena allocator."""
AT_ORIGINAL_ARENA = AT_ORIGINALS + 3 * 40
PAUSE_NS = 50_000
NO_ROOM = b"(no room for more names)"
"""A phase that stands for all others, once the names of marks fill their place."""

ENTRIES = (
    *(f"{domain}_{verb}" for domain in ("raw", "mem", "obj") for verb in ("malloc", "calloc", "realloc", "free")),
    "arena_alloc", "arena_free", "gc_callback", "put", "begin", "give_back",
)  # fmt: skip

_READ, _WRITE, _EXECUTE, _SHARED, _PRIVATE, _ANONYMOUS = 1, 2, 4, 1, 2, 0x20
_DONTFORK, _WIPEONFORK, _POPULATE_WRITE = 10, 18, 23
_METH_FASTCALL = 0x80


class _Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]


class _ArenaAllocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "alloc", "free")]


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    ]  # fmt: skip


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_errno_location = _libc.__errno_location
_python = ctypes.pythonapi


def _checked(result: int, what: str) -> int:
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)


def _address_of(function: "ctypes._NamedFuncPointer") -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Tap:
    """The hooks of this process; there is one, which later recordings use again."""

    def __init__(self) -> None:
        self._context = 0
        self._shared = 0
        self._installed: set[object] = set()
        self._names: dict[str, int] = {}
        self._names_end = NAMES_AT

    @property
    def active(self) -> bool:
        """Whether this process records; false in a child that a recorded process forked."""
        return self._context != 0 and _word(self._context + AT_ACTIVE).value != 0

    def map_shared(self, file: int) -> None:
        """Maps the memory file that the writer has filled, in place of any other."""
        flags = _READ | _WRITE
        self._shared = _checked(_libc.mmap(None, SHARED_BYTES, flags, _SHARED, file, 0), "the ring cannot be mapped")
        _libc.madvise(self._shared, SHARED_BYTES, _DONTFORK)
        _libc.madvise(self._shared, SHARED_BYTES, _POPULATE_WRITE)  # page by page it would take the program's time
        if not self._context:
            self._make_context()
        _word(self._context + AT_SHARED).value = self._shared

    def _make_context(self) -> None:
        length = _word(self._shared + AT_CODE_BYTES).value
        offsets = (ctypes.c_uint64 * len(ENTRIES)).from_address(self._shared + AT_OFFSETS)
        context = _libc.mmap(None, TEXT_AT + length, _READ | _WRITE, _PRIVATE | _ANONYMOUS, -1, 0)
        context = _checked(context, "the hooks cannot be mapped")
        ctypes.memmove(context + TEXT_AT, self._shared + CODE_AT, length)
        _checked(_libc.mprotect(context + TEXT_AT, length, _READ | _EXECUTE), "the hooks cannot be made executable")
        _checked(_libc.madvise(context, POINTERS_AT, _WIPEONFORK), "forked children cannot be left alone")
        for at, value in (
            (AT_KILL, _address_of(_libc.kill)),
            (AT_SLEEP, _address_of(_libc.nanosleep)),
            (AT_PAUSE + 8, PAUSE_NS),
            (AT_CLOCK, _address_of(_libc.clock_gettime)),
            (AT_ERRNO, _address_of(_errno_location)),
            (AT_NONE, id(None)),
            (AT_INCREF, _address_of(_python.Py_IncRef)),
        ):
            _word(context + at).value = value
        self._entries = {name: context + TEXT_AT + offset for name, offset in zip(ENTRIES, offsets, strict=True)}
        self._begin = ctypes.PYFUNCTYPE(None, ctypes.c_uint64)(self._entries["begin"])
        self._put = ctypes.PYFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(self._entries["put"])
        self._give_back = ctypes.PYFUNCTYPE(None)(self._entries["give_back"])
        self._method = _MethodDef(b"replay_gc_callback", self._entries["gc_callback"], _METH_FASTCALL, None)
        make = _python.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._gc_callback = make(ctypes.addressof(self._method), None, None)
        self._context = context

    def start(self, writer: int, drain_pool_bytes: int = 0) -> None:
        """Records from here on, for the process `writer`; first fills all pools of that size, unless it is 0."""
        self._names, self._names_end = {}, NAMES_AT
        _word(self._context + AT_WRITER).value = writer
        for domain in (RAW, MEM, OBJ):
            self._install(domain)
        self._install_arena()
        if self._gc_callback not in gc.callbacks:
            gc.callbacks.append(self._gc_callback)
        begun = ((NAMES_AT, 0), (AT_ENDED, 0), (AT_DESERTED, 0), (AT_CLEAN, int(drain_pool_bytes > 0)))
        for at, value in (*begun, (AT_PROGRAM, os.getpid())):
            _word(self._shared + at).value = value
        self._begin(drain_pool_bytes)

    def stop(self) -> None:
        """Ends the recording, and frees what it took for a clean start.

        What other threads are in the middle of recording comes to nothing.
        """
        _word(self._context + AT_ACTIVE).value = 0
        self._give_back()
        for domain in (OBJ, MEM, RAW):
            self._remove(domain)
        self._remove_arena()
        if self._gc_callback in gc.callbacks:
            gc.callbacks.remove(self._gc_callback)
        _word(self._shared + AT_ENDED).value = 1

    def mark(self, name: str) -> None:
        """A phase of that name begins here; where there is no room for more names, it goes by the last of all."""
        if not self.active:
            return
        if name not in self._names:
            text = name.encode(errors="backslashreplace")
            if self._names_end + len(text) + len(NO_ROOM) + 12 > CODE_AT:
                name, text = NO_ROOM.decode(), NO_ROOM
        if name not in self._names:
            end = self._names_end + 4 + len(text)
            ctypes.memmove(self._shared + self._names_end + 4, text, len(text))
            ctypes.c_uint32.from_address(self._shared + end).value = 0
            ctypes.c_uint32.from_address(self._shared + self._names_end).value = len(text) + 1
            self._names[name], self._names_end = len(self._names), end
        self._put(MARK, self._names[name])

    def _current(self, domain: int) -> _Allocator:
        allocator = _Allocator()
        _python.PyMem_GetAllocator(domain, ctypes.byref(allocator))
        return allocator

    def _hooks(self, domain: int) -> _Allocator:
        name = ("raw", "mem", "obj")[domain]
        return _Allocator(None, *(self._entries[f"{name}_{verb}"] for verb in ("malloc", "calloc", "realloc", "free")))

    def _install(self, domain: int) -> None:
        if domain in self._installed:
            return
        original = self._current(domain)
        ctypes.memmove(self._context + AT_ORIGINALS + 40 * domain, ctypes.byref(original), 40)
        _python.PyMem_SetAllocator(domain, ctypes.byref(self._hooks(domain)))
        self._installed.add(domain)

    def _remove(self, domain: int) -> None:
        """Unless somebody has set hooks above ours in the meantime: then ours stay and do nothing."""
        if self._current(domain).malloc != self._hooks(domain).malloc:
            return
        original = _Allocator.from_buffer_copy(ctypes.string_at(self._context + AT_ORIGINALS + 40 * domain, 40))
        _python.PyMem_SetAllocator(domain, ctypes.byref(original))
        self._installed.discard(domain)

    def _install_arena(self) -> None:
        if "arena" in self._installed:
            return
        original = _ArenaAllocator()
        _python.PyObject_GetArenaAllocator(ctypes.byref(original))
        ctypes.memmove(self._context + AT_ORIGINAL_ARENA, ctypes.byref(original), 24)
        ours = _ArenaAllocator(None, self._entries["arena_alloc"], self._entries["arena_free"])
        _python.PyObject_SetArenaAllocator(ctypes.byref(ours))
        self._installed.add("arena")

    def _remove_arena(self) -> None:
        current = _ArenaAllocator()
        _python.PyObject_GetArenaAllocator(ctypes.byref(current))
        if current.alloc == self._entries["arena_alloc"]:
            original = _ArenaAllocator.from_buffer_copy(ctypes.string_at(self._context + AT_ORIGINAL_ARENA, 24))
            _python.PyObject_SetArenaAllocator(ctypes.byref(original))
            self._installed.discard("arena")


tap = Tap()


def obstacle(clean: bool = False) -> str | None:
    """Why this process cannot be recorded, in one sentence; nothing if it can."""
    if sys.implementation.name != "cpython":
        return f"only CPython can be recorded, and this is {sys.implementation.name}"
    if sys.version_info < OLDEST:
        return f"only CPython {OLDEST[0]}.{OLDEST[1]} and newer can be recorded, and this is {sys.version.split()[0]}"
    if "t" in sys.abiflags:
        return "a free-threaded CPython cannot be recorded: it has no pymalloc; take the build with the GIL"
    if sys.platform != "linux" or os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
        return "recording needs 64-bit Linux on x86-64"
    plain = os.environ.get("PYTHONMALLOC", "") in ("", "default", "pymalloc") and not sys.flags.dev_mode
    if clean and not (plain and not hasattr(sys, "gettotalrefcount")):
        return "a clean start needs plain pymalloc: unset PYTHONMALLOC, leave out -X dev, and take no debug build"
    if tap.active or ("_replay_tap" in sys.modules and sys.modules["_replay_tap"].tap.active):
        return "this process is being recorded already; end that recording first"
    return None


def enter(folder: str, python_path: str | None, file: int, writer: int, drain_pool_bytes: int) -> None:
    """Begins recording in a program that the writer started, and leaves no trace of how it came here.

    Called before the program's first line, from a `sitecustomize` in `folder`, which stands first in PYTHONPATH;
    `python_path` is what that variable held before.
    """
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path_importer_cache.pop(folder, None)
    if python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = python_path
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            os.unlink(os.path.join(inside, name))  # noqa: PTH108, PTH118 — pathlib is not for us to import
        os.rmdir(inside)  # noqa: PTH106
    tap.map_shared(file)
    os.close(file)
    tap.start(writer, drain_pool_bytes)
