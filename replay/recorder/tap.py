"""The part of the recorder that lives in the recorded program: sets the hooks, and takes them off again.

It is a file of its own, without imports from replay or of anything but atexit, ctypes, gc, os and sys: what is imported
here, the program finds imported already. The hooks themselves are machine code that `replay.recorder.hooks` made; this
file puts them into memory, writes the addresses that they need, and passes them to CPython.

Two pieces of memory are shared with that code, both laid out by the numbers below (bytes from the start).

    shared     a memory file that writer and program map. A header, the names of marks, the machine code on its way
               here, a ring of records, one of notes on call sites. HEAD counts the records claimed by the program, TAIL
               those that the writer is done with. A record is four words: PACKED (size, op, domain and the lap of the
               ring, stored last), time, thread, address. The top of the last two is the number of the call site, or 0
    context    private memory of the program: a page that the kernel wipes in a forked child, so that nothing is
               recorded there; a page of pointers; the code. Mapped once and never unmapped, for a thread may be in it.
               Hooks that tell call sites have one of their own; what else they need is in `replay.recorder.sites`
"""

import ctypes
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

MALLOC, CALLOC, FREE, REALLOC_FROM, REALLOC_TO, REALLOC_FAILED = range(6)
ARENA_MAPPED, ARENA_UNMAPPED, GC_START, GC_END, MARK = range(6, 11)
"""Kinds of records. A realloc is two: the old address before it happens, the new one or the failure after."""

RAW, MEM, OBJ = range(3)

POOL_BYTES = 1 << 14
"""pymalloc's pools, in every CPython that is recorded."""
OLDEST, NEWEST_WITH_SITES = (3, 11), (3, 15)
RECORD_BYTES = 32
RING_BITS = 22
"""2^22 records, 128 MiB: what a busy program calls in a fifth of a second, while the writer is kept from its work."""
SIZE_BITS, OP_BITS, DOMAIN_BITS, LAP_BITS = 48, 4, 2, 10
"""Of PACKED, from the lowest. The lap counts from 1, so that a ring full of zeros holds no record."""
NUMBER_BITS, SITE_BITS = 48, 16
"""Of the words thread and address: what they tell, and half of the call site's number."""

AT_PROGRAM, AT_CODE_BYTES, AT_HEAD, AT_TAIL, AT_ENDED, AT_DESERTED, AT_CLEAN = 0, 8, 64, 128, 192, 200, 208
"""The header: process that records, length of the code, counts, whether the program stopped recording, whether it
found the writer gone, whether it started clean. Counts have cache lines of their own."""
AT_SITES_EVERY = 216
"""Which calls' sites are wanted: 0 for none, 1 for all, else one call in so many bytes."""
AT_SEPARATE_HEAPS = 224
"""Whether a subinterpreter has a pymalloc of its own."""
AT_FLUSH = 232
"""1 and the number of records that the program wants to be in the file now; 0 for no such request."""
AT_OFFSETS = 256
"""Where in the code each of ENTRIES begins."""
AT_ALLOCATOR, AT_LIBC, AT_MALLOC, NAME_BYTES = 576, 608, 640, 32
"""Texts that end with a zero: CPython's name of the allocator in force, the C library and its version, the file that
`malloc` is in. Before them are counts of `replay.recorder.sites`."""
AT_STATUS, STATUS_BYTES = (704, 2400), 1696
"""`/proc/self/status` when the recording began, and before finalisation."""
NAMES_AT, CODE_AT, RING_AT = 1 << 12, 1 << 18, (1 << 18) + (1 << 16)
COUNT_BYTES = 1 << 13
COUNTS_AT = tuple(CODE_AT - times * COUNT_BYTES for times in (2, 1))
"""Behind the names: how pymalloc counted itself when a clean recording began, and at its end. A word, the record before
which that was, counted from 1, or 0 for never; then text."""
NOTES_AT, NOTES_BYTES = RING_AT + (RECORD_BYTES << RING_BITS), 1 << 24
SHARED_BYTES = NOTES_AT + NOTES_BYTES

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
AT_THREAD_STATE_NOW, AT_INTERPRETER_OF, AT_HAS_FEATURE, AT_CONFIG_OF = range(POINTERS_AT + 280, POINTERS_AT + 312, 8)
"""Functions that return whether an interpreter shares pymalloc with the main one; 0 where CPython has none."""
PAUSE_NS = 50_000
NO_ROOM = b"(no room for more names)"
"""A phase that stands for all others, once the names of marks fill their place."""

ENTRIES = (
    *(f"{domain}_{verb}" for domain in ("raw", "mem", "obj") for verb in ("malloc", "calloc", "realloc", "free")),
    "arena_alloc", "arena_free", "gc_callback", "put", "begin", "give_back",
    "count", "find_site",
)  # fmt: skip

_READ, _WRITE, _EXECUTE, _SHARED, _PRIVATE, _ANONYMOUS = 1, 2, 4, 1, 2, 0x20
_DONTFORK, _WIPEONFORK, _POPULATE_WRITE = 10, 18, 23
_METH_FASTCALL = 0x80


class _Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "malloc", "calloc", "realloc", "free")]


class _ArenaAllocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("ctx", "alloc", "free")]


class _SymbolInfo(ctypes.Structure):
    """Dl_info."""

    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("name", ctypes.c_char_p),
                ("address", ctypes.c_void_p)]  # fmt: skip


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p), ("function", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_char_p),
    ]  # fmt: skip


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.fmemopen.restype = ctypes.c_void_p
_libc.fmemopen.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.fclose.argtypes = [ctypes.c_void_p]
_libc.read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
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


def _find(name: str) -> int:
    """The address of a function of CPython's; 0 where this version has none of that name."""
    function = getattr(_python, name, None)
    return _address_of(function) if function is not None else 0


class Hooks:
    """One set of hooks in this process: its context, and what of it CPython calls."""

    def __init__(self, shared: int) -> None:
        length = _word(shared + AT_CODE_BYTES).value
        offsets = (ctypes.c_uint64 * len(ENTRIES)).from_address(shared + AT_OFFSETS)
        context = _libc.mmap(None, TEXT_AT + length, _READ | _WRITE, _PRIVATE | _ANONYMOUS, -1, 0)
        self.context = context = _checked(context, "the hooks cannot be mapped")
        ctypes.memmove(context + TEXT_AT, shared + CODE_AT, length)
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
            (AT_THREAD_STATE_NOW, _find("PyThreadState_GetUnchecked") or _find("_PyThreadState_UncheckedGet")),
            (AT_INTERPRETER_OF, _find("PyThreadState_GetInterpreter")),
            (AT_HAS_FEATURE, _find("_PyInterpreterState_HasFeature")),
            (AT_CONFIG_OF, _find("_PyInterpreterConfig_InitFromState")),
        ):
            _word(context + at).value = value
        self.entries = {name: context + TEXT_AT + offset for name, offset in zip(ENTRIES, offsets, strict=True)}
        self.begin = ctypes.PYFUNCTYPE(None, ctypes.c_uint64)(self.entries["begin"])
        self.put = ctypes.PYFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(self.entries["put"])
        self.count = ctypes.PYFUNCTYPE(None, *[ctypes.c_uint64] * 5)(self.entries["count"])
        self._give_back = ctypes.PYFUNCTYPE(None)(self.entries["give_back"])
        self._method = _MethodDef(b"replay_gc_callback", self.entries["gc_callback"], _METH_FASTCALL, None)
        make = _python.PyCFunction_NewEx
        make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
        self._gc_callback = make(ctypes.addressof(self._method), None, None)
        self._installed: set[object] = set()

    @property
    def active(self) -> bool:
        return _word(self.context + AT_ACTIVE).value != 0

    def install(self) -> None:
        for domain in (RAW, MEM, OBJ):
            self._install(domain)
        self._install_arena()
        if self._gc_callback not in gc.callbacks:
            gc.callbacks.append(self._gc_callback)

    def remove(self) -> None:
        """Ends the recording, and frees what it took for a clean start.

        What other threads are in the middle of recording comes to nothing.
        """
        _word(self.context + AT_ACTIVE).value = 0
        self._give_back()
        for domain in (OBJ, MEM, RAW):
            self._remove(domain)
        self._remove_arena()
        if self._gc_callback in gc.callbacks:
            gc.callbacks.remove(self._gc_callback)

    def _current(self, domain: int) -> _Allocator:
        allocator = _Allocator()
        _python.PyMem_GetAllocator(domain, ctypes.byref(allocator))
        return allocator

    def _allocator(self, domain: int) -> _Allocator:
        name = ("raw", "mem", "obj")[domain]
        return _Allocator(None, *(self.entries[f"{name}_{verb}"] for verb in ("malloc", "calloc", "realloc", "free")))

    def _install(self, domain: int) -> None:
        if domain in self._installed:
            return
        original = self._current(domain)
        ctypes.memmove(self.context + AT_ORIGINALS + 40 * domain, ctypes.byref(original), 40)
        _python.PyMem_SetAllocator(domain, ctypes.byref(self._allocator(domain)))
        self._installed.add(domain)

    def _remove(self, domain: int) -> None:
        """Unless somebody has set hooks above ours in the meantime: then ours stay and do nothing."""
        if self._current(domain).malloc != self._allocator(domain).malloc:
            return
        original = _Allocator.from_buffer_copy(ctypes.string_at(self.context + AT_ORIGINALS + 40 * domain, 40))
        _python.PyMem_SetAllocator(domain, ctypes.byref(original))
        self._installed.discard(domain)

    def _install_arena(self) -> None:
        if "arena" in self._installed:
            return
        original = _ArenaAllocator()
        _python.PyObject_GetArenaAllocator(ctypes.byref(original))
        ctypes.memmove(self.context + AT_ORIGINAL_ARENA, ctypes.byref(original), 24)
        ours = _ArenaAllocator(None, self.entries["arena_alloc"], self.entries["arena_free"])
        _python.PyObject_SetArenaAllocator(ctypes.byref(ours))
        self._installed.add("arena")

    def _remove_arena(self) -> None:
        current = _ArenaAllocator()
        _python.PyObject_GetArenaAllocator(ctypes.byref(current))
        if current.alloc == self.entries["arena_alloc"]:
            original = _ArenaAllocator.from_buffer_copy(ctypes.string_at(self.context + AT_ORIGINAL_ARENA, 24))
            _python.PyObject_SetArenaAllocator(ctypes.byref(original))
            self._installed.discard("arena")


class Tap:
    """The recording of this process; there is one, and its hooks are there for later ones too."""

    def __init__(self) -> None:
        self._sets: dict[bool, Hooks] = {}
        """The plain ones, and those that tell call sites."""
        self._context = 0
        """Of the hooks that are in use, or were last."""
        self._shared = 0
        self._names: dict[str, int] = {}
        self._names_end = NAMES_AT

    @property
    def active(self) -> bool:
        """Whether this process records; false in a child that a recorded process forked."""
        return any(hooks.active for hooks in self._sets.values())

    def map_shared(self, file: int) -> None:
        """Maps the memory file that the writer has filled, in place of any other."""
        flags = _READ | _WRITE
        self._shared = _checked(_libc.mmap(None, SHARED_BYTES, flags, _SHARED, file, 0), "the ring cannot be mapped")
        _libc.madvise(self._shared, SHARED_BYTES, _DONTFORK)
        _libc.madvise(self._shared, NOTES_AT, _POPULATE_WRITE)  # page by page it would take the program's time

    def start(self, writer: int, drain_pool_bytes: int = 0, sites: "ModuleType | None" = None) -> None:
        """Records from here on, for the process `writer`; first fills all pools of that size, unless it is 0.

        `sites` is the module `replay.recorder.sites`, whatever it is called here, if call sites are wanted.
        """
        self._names, self._names_end = {}, NAMES_AT
        kind = sites is not None
        if kind not in self._sets:
            self._sets[kind] = Hooks(self._shared)
        hooks = self._sets[kind]
        self._context = hooks.context
        _word(self._context + AT_SHARED).value = self._shared
        _word(self._context + AT_WRITER).value = writer
        if sites is not None:
            sites.prepare(hooks, self._shared, NOTES_AT, _word(self._shared + AT_SITES_EVERY).value)
        self._note_runtime()
        hooks.install()
        begun = ((NAMES_AT, 0), (AT_ENDED, 0), (AT_DESERTED, 0), (AT_CLEAN, int(drain_pool_bytes > 0)))
        for at, value in (*begun, (AT_PROGRAM, os.getpid())):
            _word(self._shared + at).value = value
        self._note_status(0)
        hooks.begin(drain_pool_bytes)
        self.count(0)

    def _note_runtime(self) -> None:
        """Writes down which allocator and C library are in force, before hooks hide the allocator's name."""
        name = getattr(_python, "_PyMem_GetCurrentAllocatorName", None)
        if name is not None:
            name.restype = ctypes.c_char_p
        self._put_text(AT_ALLOCATOR, name() if name is not None else None)
        try:
            libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
        except (ValueError, OSError):  # not glibc
            libc = ""
        self._put_text(AT_LIBC, libc.encode())
        found = _SymbolInfo()
        _libc.dladdr(ctypes.cast(_libc.malloc, ctypes.c_void_p), ctypes.byref(found))
        self._put_text(AT_MALLOC, (found.file or b"").rpartition(b"/")[2])

    def _put_text(self, at: int, text: "bytes | None") -> None:
        ctypes.memset(self._shared + at, 0, NAME_BYTES)
        ctypes.memmove(self._shared + at, text or b"", min(len(text or b""), NAME_BYTES - 1))

    def _note_status(self, which: int) -> None:
        """Has the kernel write `/proc/self/status` into shared memory, without any memory of CPython's."""
        file = _libc.open(b"/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        if file >= 0:
            _libc.read(file, self._shared + AT_STATUS[which], STATUS_BYTES - 1)
            _libc.close(file)

    def end(self, mark: str) -> None:
        """The program itself is over and CPython's finalisation begins: marks it so, and notes what is true then."""
        self.mark(mark)
        if self.active:
            self._note_status(1)
        self.count(1)

    def ask_flush(self) -> None:
        """Asks the writer to write all that was recorded so far to the file."""
        _word(self._shared + AT_FLUSH).value = 1 + _word(self._shared + AT_HEAD).value

    def stop(self) -> None:
        """Ends the recording."""
        self._note_status(1)
        self.count(1)
        for hooks in self._sets.values():
            hooks.remove()
        _word(self._shared + AT_ENDED).value = 1

    def mark(self, name: str) -> None:
        """A phase of that name begins here; where there is no room for more names, it goes by the last of all."""
        if not self.active:
            return
        if name not in self._names:
            text = name.encode(errors="backslashreplace")
            if self._names_end + len(text) + len(NO_ROOM) + 12 > COUNTS_AT[0]:
                name, text = NO_ROOM.decode(), NO_ROOM
        if name not in self._names:
            end = self._names_end + 4 + len(text)
            ctypes.memmove(self._shared + self._names_end + 4, text, len(text))
            ctypes.c_uint32.from_address(self._shared + end).value = 0
            ctypes.c_uint32.from_address(self._shared + self._names_end).value = len(text) + 1
            self._names[name], self._names_end = len(self._names), end
        for hooks in self._sets.values():
            hooks.put(MARK, self._names[name])

    def count(self, which: int) -> None:
        """Has pymalloc count itself, if the recording is a clean one, and keeps that in one of the places for it.

        What counts is the function behind `sys._debugmallocstats`. It gets a file of its own to write to, which is that
        memory: nothing that the program has open is touched.
        """
        function = getattr(_python, "_PyObject_DebugMallocStats", None)
        if function is None or not (self.active and _word(self._shared + AT_CLEAN).value):
            return
        file = _libc.fmemopen(self._shared + COUNTS_AT[which] + 8, COUNT_BYTES - 8, b"w")
        if file:
            get, set_ = _address_of(_python.PyMem_GetAllocator), _address_of(_python.PyMem_SetAllocator)
            for hooks in self._sets.values():
                if hooks.active:
                    hooks.count(_address_of(function), file, COUNTS_AT[which], get, set_)
            _libc.fclose(file)


tap = Tap()


def obstacle(clean: bool = False, sites: bool = False) -> str | None:
    """Why this process cannot be recorded like that, in one sentence; nothing if it can."""
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
    if sites and (reason := site_obstacle()):
        return reason
    if tap.active or ("_replay_tap" in sys.modules and sys.modules["_replay_tap"].tap.active):
        return "this process is being recorded already; end that recording first"
    return None


def site_obstacle() -> str | None:
    """Why this process cannot be recorded with call sites, in one sentence; nothing if it can, as far as that goes."""
    if sys.version_info[:2] > NEWEST_WITH_SITES:
        return f"call sites are recorded of CPython 3.11 to 3.{NEWEST_WITH_SITES[1]}, not of {sys.version.split()[0]}"
    if hasattr(sys, "_jit") and sys._jit.is_enabled():
        return "CPython's JIT does not keep track of lines, so call sites cannot be told: set PYTHON_JIT=0"
    return None


def enter(
    folder: str,
    python_path: str | None,
    file: int,
    writer: int,
    drain_pool_bytes: int,
    sites: "ModuleType | None" = None,
    *,
    end_mark: str,
    modules: "set[str]",
) -> None:
    """Begins recording in a program that the writer started, and leaves no trace of how it came here.

    Called before the program's first line, from a `sitecustomize` in `folder`, which stands first in PYTHONPATH;
    `python_path` is what that variable held before. A mark of the name `end_mark` is recorded when CPython's
    finalisation begins. No modules stay in sys.modules but `modules`; those that stay referenced from here are imported
    anew where the program wants them. The rest is as in `Tap.start`.
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
    import atexit

    atexit.register(tap.end, end_mark)  # the first function registered is called last
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    tap.start(writer, drain_pool_bytes, sites)
