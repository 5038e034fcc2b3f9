"""The part of the recorder in the recorded program: installs and removes the hooks.

It is a single file that imports only atexit, ctypes, gc, os and sys, because the program would find other modules
already imported. The hooks are machine code from `replay.recorder.hooks`. This file copies them into executable memory,
stores the addresses that they use, and passes them to CPython.

Hooks use two regions of memory. The constants below are offsets in them, in bytes.

    shared     a memory file that writer and program map: a header, the names of marks, the machine code for the
               program, a ring of records, a ring of notes about call sites. HEAD counts the records that the program
               claimed, TAIL those that the writer has processed. A record has four words: PACKED (size, op, domain and
               lap of the ring; stored last), time, thread, address. The high bits of the last two are the number of the
               call site, or 0. In a free, they are the number of the block's type, and the size an unknown pointer
    context    private memory of the program: a page that the kernel zeroes in a forked child, so that the child is not
               recorded; a page of pointers; the code. It is mapped once and never unmapped, because a thread can be in
               it. Each set of hooks has a context of its own; `replay.recorder.sites` and
               `replay.recorder.object_types` have the other words of sets with call sites or types
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
"""Size of pymalloc's pools in every supported CPython."""
OLDEST, NEWEST_WITH_SITES = (3, 11), (3, 15)
RECORD_BYTES = 32
RING_BITS = 22
"""2^22 records, 128 MiB: the calls of a busy program in a fifth of a second, if the writer does not run."""
SIZE_BITS, OP_BITS, DOMAIN_BITS, LAP_BITS = 48, 4, 2, 10
"""Bits of PACKED, from the lowest. The lap counts from 1, so a ring full of zeros has no complete record."""
NUMBER_BITS, SITE_BITS = 48, 16
"""Bits of the words thread and address: the value itself, and half of the call site's number."""

AT_PROGRAM, AT_CODE_BYTES, AT_HEAD, AT_TAIL, AT_ENDED, AT_DESERTED, AT_CLEAN = 0, 8, 64, 128, 192, 200, 208
"""The header: recorded process, length of the code, HEAD, TAIL, whether the program ended the recording, whether it
found the writer dead, whether it started clean. HEAD and TAIL have cache lines of their own."""
AT_SITES_EVERY = 216
"""The calls whose sites are recorded: 0 for none, 1 for all, else the bytes between sampled calls."""
AT_SEPARATE_HEAPS = 224
"""Whether a subinterpreter has a pymalloc of its own."""
AT_FLUSH = 232
"""Request for a flush: 1 plus the number of records that must be in the file; 0 for no request."""
AT_OFFSETS = 256
"""Offsets of ENTRIES in the code."""
AT_ALLOCATOR, AT_LIBC, AT_MALLOC, NAME_BYTES = 576, 608, 640, 32
"""Texts that end with a zero byte: CPython's name of the current allocator, the C library and its version, the file
that contains `malloc`. Before them are the counts of `replay.recorder.sites`."""
AT_STATUS, STATUS_BYTES = (704, 2400), 1696
"""`/proc/self/status` at the start of the recording and before finalization."""
NAMES_AT, CODE_AT, RING_AT = 1 << 12, 1 << 18, (1 << 18) + (1 << 16)
COUNT_BYTES = 1 << 13
COUNTS_AT = tuple(CODE_AT - times * COUNT_BYTES for times in (2, 1))
"""After the names: pymalloc's statistics at the start and at the end of a clean recording. A word has the number of the
following record, from 1, or 0 if pymalloc did not count; then the text."""
NOTES_AT, NOTES_BYTES = RING_AT + (RECORD_BYTES << RING_BITS), 1 << 24
AT_TYPES_WANTED, AT_TYPES_ASKED, AT_TYPES_COUNT, AT_TYPES_ANSWERED = range(672, 704, 8)
"""At the end of a recording with types: 1 plus the number of records after which the program answers, 0 before; rounds
of questions; addresses in the current one, 0 after the last; rounds that were answered."""
TYPES_AT, TYPES_BYTES = NOTES_AT + NOTES_BYTES, 1 << 20
"""Addresses of live blocks. The program replaces them by their types."""
COLLECTOR_AT, COLLECTOR_BYTES = TYPES_AT + TYPES_BYTES, 1 << 12
"""The state of the garbage collector at the start; see `replay.recorder.object_types`."""
SHARED_BYTES = COLLECTOR_AT + COLLECTOR_BYTES

AT_ACTIVE, AT_INSIDE = 0, 64
"""The page that is zeroed in a child: whether to record; the thread that is inside a call of the domains mem and
obj."""
POINTERS_AT, TEXT_AT = 1 << 12, 1 << 13
AT_SHARED, AT_WRITER, AT_KILL, AT_SLEEP, AT_CLOCK, AT_ERRNO, AT_NONE, AT_INCREF = range(
    POINTERS_AT, POINTERS_AT + 64, 8
)
AT_PAUSE = POINTERS_AT + 64
"""A timespec."""
AT_ARENAS, AT_ARENA, AT_ARENA_BYTES = range(POINTERS_AT + 80, POINTERS_AT + 104, 8)
"""Number of arenas that were mapped so far; address and size of the last one."""
AT_FILLING = POINTERS_AT + 104
"""The last block that fills a pool for a clean start."""
AT_ORIGINALS = POINTERS_AT + 128
"""The original allocators. Five words for each domain: ctx, malloc, calloc, realloc, free; three for arenas."""
AT_ORIGINAL_ARENA = AT_ORIGINALS + 3 * 40
AT_THREAD_STATE_NOW, AT_INTERPRETER_OF, AT_HAS_FEATURE, AT_CONFIG_OF = range(POINTERS_AT + 280, POINTERS_AT + 312, 8)
"""Functions with which a hook finds out whether an interpreter shares pymalloc with the main one; 0 if missing."""
PAUSE_NS = 50_000
NO_ROOM = b"(no room for more names)"
"""The name of all further phases when the memory for names is full."""

ENTRIES = (
    *(f"{domain}_{verb}" for domain in ("raw", "mem", "obj") for verb in ("malloc", "calloc", "realloc", "free")),
    "arena_alloc", "arena_free", "gc_callback", "put", "begin", "free_filling",
    "count", "find_site", "note_types", "answer_types",
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


def _checked(result: int, message: str) -> int:
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), f"{message}: {os.strerror(ctypes.get_errno())}")
    return result


def _word(address: int) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(address)


def _address_of(function: "ctypes._NamedFuncPointer") -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _find(name: str) -> int:
    """Returns the address of a function of CPython; 0 if this version does not have it."""
    function = getattr(_python, name, None)
    return _address_of(function) if function is not None else 0


class Hooks:
    """One set of hooks in this process: its context, and its functions."""

    def __init__(self, shared: int) -> None:
        length = _word(shared + AT_CODE_BYTES).value
        offsets = (ctypes.c_uint64 * len(ENTRIES)).from_address(shared + AT_OFFSETS)
        context = _libc.mmap(None, TEXT_AT + length, _READ | _WRITE, _PRIVATE | _ANONYMOUS, -1, 0)
        self.context = context = _checked(context, "the hooks cannot be mapped")
        ctypes.memmove(context + TEXT_AT, shared + CODE_AT, length)
        _checked(_libc.mprotect(context + TEXT_AT, length, _READ | _EXECUTE), "the hooks cannot be made executable")
        _checked(_libc.madvise(context, POINTERS_AT, _WIPEONFORK), "the hooks cannot be disabled in forked children")
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
        self.answer_types = ctypes.PYFUNCTYPE(None)(self.entries["answer_types"])
        self._free_filling = ctypes.PYFUNCTYPE(None)(self.entries["free_filling"])
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
        """Ends the recording, removes the hooks, and frees the blocks of a clean start.

        Records that other threads have not completed are lost.
        """
        _word(self.context + AT_ACTIVE).value = 0
        self._free_filling()
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
        """Removes the hooks of a domain. If other hooks were installed on top of them, they stay and do nothing."""
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
    """The recording of this process. There is one instance; later recordings use the same hooks."""

    def __init__(self) -> None:
        self._sets: dict[tuple[bool, bool], Hooks] = {}
        """Hooks by whether they record call sites, and types."""
        self._types: ModuleType | None = None
        self._context = 0
        """The context of the hooks that are in use, or were used last."""
        self._shared = 0
        self._names: dict[str, int] = {}
        self._names_end = NAMES_AT

    @property
    def active(self) -> bool:
        """Whether this process is recorded; false in a forked child of a recorded process."""
        return any(hooks.active for hooks in self._sets.values())

    def map_shared(self, file: int) -> None:
        """Maps the memory file that the writer has prepared. It replaces an earlier one."""
        flags = _READ | _WRITE
        self._shared = _checked(_libc.mmap(None, SHARED_BYTES, flags, _SHARED, file, 0), "the ring cannot be mapped")
        _libc.madvise(self._shared, SHARED_BYTES, _DONTFORK)
        _libc.madvise(self._shared, NOTES_AT, _POPULATE_WRITE)  # single page faults would slow the program down

    def start(
        self,
        writer: int,
        drain_pool_bytes: int = 0,
        sites: "ModuleType | None" = None,
        types: "ModuleType | None" = None,
    ) -> None:
        """Starts recording for the process `writer`. Fills all pools of `drain_pool_bytes` first, unless it is 0.

        `sites`: the module `replay.recorder.sites`, which can have another name here; None records no call sites.
        `types`: the module `replay.recorder.object_types`; None records no types.
        """
        self._names, self._names_end = {}, NAMES_AT
        self._types = types
        kind = sites is not None, types is not None
        if kind not in self._sets:
            self._sets[kind] = Hooks(self._shared)
        hooks = self._sets[kind]
        self._context = hooks.context
        _word(self._context + AT_SHARED).value = self._shared
        _word(self._context + AT_WRITER).value = writer
        if sites is not None:
            sites.prepare(hooks, self._shared, NOTES_AT, _word(self._shared + AT_SITES_EVERY).value)
        if types is not None:
            types.prepare(hooks, self._shared + COLLECTOR_AT)
        self._note_runtime()
        hooks.install()
        begun = ((NAMES_AT, 0), (AT_ENDED, 0), (AT_DESERTED, 0), (AT_CLEAN, int(drain_pool_bytes > 0)))
        for at, value in (*begun, (AT_PROGRAM, os.getpid())):
            _word(self._shared + at).value = value
        self._note_status(0)
        hooks.begin(drain_pool_bytes)
        self.count(0)

    def _note_runtime(self) -> None:
        """Stores the names of allocator and C library. Called before the hooks, which would hide the allocator's
        name."""
        name = getattr(_python, "_PyMem_GetCurrentAllocatorName", None)
        if name is not None:
            name.restype = ctypes.c_char_p
        self._put_text(AT_ALLOCATOR, name() if name is not None else None)
        try:
            libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
        except (ValueError, OSError):  # not glibc
            libc = ""
        self._put_text(AT_LIBC, libc.encode())
        symbol = _SymbolInfo()
        _libc.dladdr(ctypes.cast(_libc.malloc, ctypes.c_void_p), ctypes.byref(symbol))
        self._put_text(AT_MALLOC, (symbol.file or b"").rpartition(b"/")[2])

    def _put_text(self, at: int, text: "bytes | None") -> None:
        ctypes.memset(self._shared + at, 0, NAME_BYTES)
        ctypes.memmove(self._shared + at, text or b"", min(len(text or b""), NAME_BYTES - 1))

    def _note_status(self, which: int) -> None:
        """Reads `/proc/self/status` into shared memory, without an allocation in CPython."""
        file = _libc.open(b"/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        if file >= 0:
            _libc.read(file, self._shared + AT_STATUS[which], STATUS_BYTES - 1)
            _libc.close(file)

    def end(self, mark: str) -> None:
        """Called when CPython's finalization begins: records a mark, the resident memory and pymalloc's statistics."""
        self.mark(mark)
        if self.active:
            self._note_status(1)
        self.count(1)
        self._record_types()
        self._name_types()

    def _record_types(self) -> None:
        """Records the types of all live objects: waits for the writer, and answers it."""
        for hooks in self._sets.values():
            if self._types is not None and hooks.active:
                _word(self._shared + AT_TYPES_WANTED).value = 1 + _word(self._shared + AT_HEAD).value
                hooks.answer_types()

    def _name_types(self) -> None:
        """Names all types of the program. Python code runs, so this follows all that is recorded."""
        if self._types is not None and self._shared:
            hooks = next(hooks for hooks in self._sets.values() if hooks.context == self._context)
            self._types.name_types(hooks)

    def request_flush(self) -> None:
        """Requests that the writer writes all records so far to the file."""
        _word(self._shared + AT_FLUSH).value = 1 + _word(self._shared + AT_HEAD).value

    def stop(self) -> None:
        """Ends the recording."""
        self._note_status(1)
        self.count(1)
        self._record_types()
        for hooks in self._sets.values():
            hooks.remove()
        self._name_types()
        _word(self._shared + AT_ENDED).value = 1

    def mark(self, name: str) -> None:
        """Records the start of a phase. If the memory for names is full, the phase is called NO_ROOM."""
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
        """Stores pymalloc's statistics in the shared memory, if the recording is clean. `which`: start (0) or end (1).

        Calls the function behind `sys._debugmallocstats` with a file that is this memory, so no file of the program is
        used.
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


def obstacle(clean: bool = False, sites: bool = False, types: bool = False) -> str | None:
    """Returns why this process cannot be recorded with these options, in one sentence; None if it can."""
    if sys.implementation.name != "cpython":
        return f"only CPython can be recorded, and this is {sys.implementation.name}"
    if sys.version_info < OLDEST:
        return f"only CPython {OLDEST[0]}.{OLDEST[1]} and newer can be recorded, and this is {sys.version.split()[0]}"
    if "t" in sys.abiflags:
        return "a free-threaded CPython cannot be recorded: it has no pymalloc; use the build with the GIL"
    if sys.platform != "linux" or os.uname().machine != "x86_64" or sys.maxsize < 1 << 32:
        return "recording needs 64-bit Linux on x86-64"
    plain = os.environ.get("PYTHONMALLOC", "") in ("", "default", "pymalloc") and not sys.flags.dev_mode
    if clean and not (plain and not hasattr(sys, "gettotalrefcount")):
        return "a clean start needs plain pymalloc: unset PYTHONMALLOC, leave out -X dev, and do not use a debug build"
    if sites and (reason := site_obstacle()):
        return reason
    if types and sys.version_info[:2] > NEWEST_WITH_SITES:
        return f"types need CPython 3.11 to 3.{NEWEST_WITH_SITES[1]}, and this is {sys.version.split()[0]}"
    if tap.active or ("_replay_tap" in sys.modules and sys.modules["_replay_tap"].tap.active):
        return "this process is being recorded already; end that recording first"
    return None


def site_obstacle() -> str | None:
    """Returns why call sites of this process cannot be recorded, in one sentence; None if they can."""
    if sys.version_info[:2] > NEWEST_WITH_SITES:
        return f"call sites need CPython 3.11 to 3.{NEWEST_WITH_SITES[1]}, and this is {sys.version.split()[0]}"
    if hasattr(sys, "_jit") and sys._jit.is_enabled():
        return "CPython's JIT does not keep track of lines, so call sites cannot be recorded: set PYTHON_JIT=0"
    return None


def enter(
    folder: str,
    python_path: str | None,
    file: int,
    writer: int,
    drain_pool_bytes: int,
    sites: "ModuleType | None" = None,
    types: "ModuleType | None" = None,
    *,
    end_mark: str,
    modules: "set[str]",
) -> None:
    """Starts recording in a program that the writer started, and restores the environment that it would have.

    Called before the program's first line, from a `sitecustomize` in `folder`, which is the first entry of PYTHONPATH;
    `python_path` is the earlier value of that variable. The mark `end_mark` is recorded when CPython's finalization
    begins. Modules that are not in `modules` are removed from sys.modules, so the program imports them again. The other
    arguments are those of `Tap.start`.
    """
    sys.path[:] = [entry for entry in sys.path if entry != folder]
    sys.path_importer_cache.pop(folder, None)
    if python_path is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = python_path
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            os.unlink(os.path.join(inside, name))  # noqa: PTH108, PTH118 — pathlib must not be imported here
        os.rmdir(inside)  # noqa: PTH106
    tap.map_shared(file)
    os.close(file)
    import atexit

    atexit.register(tap.end, end_mark)  # the first function registered is called last
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    tap.start(writer, drain_pool_bytes, sites, types)
