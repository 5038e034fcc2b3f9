"""The hooks: what runs at each call of a recorded program's allocators. `replay.recorder.tap` lays out what they see.

Each claims a record in the ring, fills it, and publishes it by storing its last word; where the ring is full it waits
for the writer. The order of records is right across threads: a free is claimed before it happens and a malloc after, so
nobody else can have claimed a malloc of the same address in between. Realloc, which is both, claims two.

A call of the domains mem or obj can make one of raw: for a large block, or for pymalloc's own tables. It is part of
the outer call and not recorded. Who is inside such a call is one word, because only the holder of the GIL can be; raw
hooks, which run without the GIL, look whether it is their own thread.

Hooks find the context by their own place in memory and ignore the one CPython hands them: while hooks are set or taken
off, a thread without the GIL can see the function of one allocator with the context of another.

Hooks that tell call sites are a set of their own, so that plain ones cost nothing for it: `replay.recorder.site_hooks`.
"""

from functools import cache
from pathlib import Path

from replay.recorder import frames, tap
from replay.recorder.machine_code import Body, Code, Program, Value, assemble
from replay.recorder.site_hooks import SiteHooks

_CLOCK_MONOTONIC = 1
_SMALL_BYTES, _CLASS_BYTES, _POOL_HEADER_BYTES = 512, 16, 48
"""pymalloc's, in every 64-bit CPython that is recorded."""
_CLASSES = _SMALL_BYTES // _CLASS_BYTES
_SLOTS = 1 << tap.RING_BITS
_USE_MAIN_OBMALLOC = 1 << 5
"""Py_RTFLAGS_USE_MAIN_OBMALLOC."""
_CONFIG_WORDS = 8
"""Room for PyInterpreterConfig: seven ints, of which `use_main_obmalloc` is the first."""
_LOOK_EVERY = 1 << 10
"""Pauses of a waiting hook between two looks whether the writer lives."""


def has_steady_counter() -> bool:
    """Whether the processor counts time by itself, at one rate on all cores and in all its states of sleep."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return {"constant_tsc", "nonstop_tsc"} <= set(flags)


@cache
def make_hooks(counter: bool, layout: frames.Layout | None = None) -> Code:
    """The machine code, exporting `tap.ENTRIES`, of which only hooks that tell call sites have one that finds a site.

    With `counter`, time is the processor's count, not the kernel's. Call sites are told by the `layout` of frames.
    """
    hooks = _Hooks(counter, layout)
    hooks.allocator("raw", tap.RAW)
    hooks.allocator("mem", tap.MEM)
    hooks.allocator("obj", tap.OBJ)
    hooks.arena_allocator()
    hooks.marks()
    hooks.begin()
    hooks.count()
    hooks.give_back()
    return assemble(hooks.program)


class _Hooks:
    def __init__(self, counter: bool, layout: frames.Layout | None) -> None:
        self.program = Program()
        self._counter = counter
        self._wait = self._make_wait()
        self._sites = SiteHooks(self.program, self._wait, layout) if layout else None
        self._record = self._make_record()

    def _make_wait(self) -> Body:
        """wait(at, least): until the writer has done that much; 0 if the recording is over, for want of a writer."""
        body = self.program.function("wait", 2, "noinline", "internal")
        at, least = body.arguments
        context = body.near(-tap.TEXT_AT)
        shared = body.load(context, tap.AT_SHARED)
        errno_at = body.call(body.load(context, tap.AT_ERRNO))
        errno, pauses = body.load(errno_at), body.room(1)
        body.store(pauses, 0, 0)
        with body.repeat():
            with body.when(body.compare(body.load_shared(context, tap.AT_ACTIVE), "==", 0)):
                body.give(0)
            body.call(body.load(context, tap.AT_SLEEP), body.add(context, tap.AT_PAUSE), 0)
            passed = body.add(body.load(pauses), 1)
            body.store(pauses, 0, passed)
            with body.when(body.compare(body.both(passed, _LOOK_EVERY - 1), "==", 0)):
                gone = body.low_half(body.call(body.load(context, tap.AT_KILL), body.load(context, tap.AT_WRITER), 0))
                with body.when(gone):
                    body.publish(context, tap.AT_ACTIVE, 0)
                    body.publish(shared, tap.AT_DESERTED, 1)
            body.leave_when(body.compare(body.load_shared(body.add(shared, at), 0), ">=", least))
        body.store(errno_at, 0, errno)
        body.give(1)
        return body

    def _make_record(self) -> Body:
        """record(kind, address, size, site), where kind is op and domain at their place in the packed word.

        Plain hooks have no site.
        """
        body = self.program.function("record", 4, "alwaysinline", "internal")
        kind, address, size, site = body.arguments
        context = body.near(-tap.TEXT_AT)
        shared = body.load(context, tap.AT_SHARED)
        index = body.claim(shared, tap.AT_HEAD)
        room_end = body.add(body.load_shared(shared, tap.AT_TAIL), _SLOTS)
        with body.when(body.compare(room_end, "<=", index), likely=False):
            done = body.call_own(self._wait, tap.AT_TAIL, body.subtract(index, _SLOTS - 1))
            with body.when(body.compare(done, "==", 0)):
                body.give(0)
        place = body.multiply(body.both(index, _SLOTS - 1), tap.RECORD_BYTES)
        slot = body.add(body.add(shared, tap.RING_AT), place)
        body.store(slot, 8, self._now(body, context))
        low, high = site, body.shift_right(site, tap.SITE_BITS)
        body.store(slot, 16, body.either(body.thread(), body.shift_left(low, tap.NUMBER_BITS)))
        body.store(slot, 24, body.either(address, body.shift_left(high, tap.NUMBER_BITS)))
        lap = body.shift_left(body.add(body.shift_right(index, tap.RING_BITS), 1), 64 - tap.LAP_BITS)
        body.publish(slot, 0, body.either(body.either(lap, kind), size))
        body.give(0)
        return body

    def _now(self, body: Body, context: Value) -> Value:
        if self._counter:
            return body.counter()
        time = body.room(2)
        body.call(body.load(context, tap.AT_CLOCK), _CLOCK_MONOTONIC, time)
        return body.add(body.multiply(body.load(time), 1_000_000_000), body.load(time, 8))

    def allocator(self, name: str, domain: int) -> None:
        """The four hooks of a domain."""
        for verb, arguments in (("malloc", 1), ("calloc", 2), ("realloc", 2), ("free", 1)):
            body = self.program.function(f"{name}_{verb}", 1 + arguments)
            getattr(self, f"_{verb}")(body, domain, body.near(-tap.TEXT_AT), *body.arguments[1:])

    def _malloc(self, body: Body, domain: int, context: Value, size: Value) -> None:
        self._pass_unrecorded(body, domain, context, "malloc", size)
        block = self._original(body, domain, context, "malloc", size)
        with body.when(block, likely=True):
            self._record_block(body, tap.MALLOC, domain, block, size)
        body.give(block)

    def _calloc(self, body: Body, domain: int, context: Value, items: Value, item_size: Value) -> None:
        self._pass_unrecorded(body, domain, context, "calloc", items, item_size)
        block = self._original(body, domain, context, "calloc", items, item_size)
        with body.when(block, likely=True):
            self._record_block(body, tap.CALLOC, domain, block, body.multiply(items, item_size))
        body.give(block)

    def _realloc(self, body: Body, domain: int, context: Value, old: Value, size: Value) -> None:
        self._pass_unrecorded(body, domain, context, "realloc", old, size)
        with body.when(body.compare(old, "==", 0)):
            block = self._original(body, domain, context, "realloc", old, size)
            with body.when(block):
                self._record_block(body, tap.MALLOC, domain, block, size)
            body.give(block)
        body.call_own(self._record, _kind(tap.REALLOC_FROM, domain), old, 0, 0)
        block = self._original(body, domain, context, "realloc", old, size)
        with body.when(block):
            self._record_block(body, tap.REALLOC_TO, domain, block, size)
            body.give(block)
        body.call_own(self._record, _kind(tap.REALLOC_FAILED, domain), old, 0, 0)
        body.give(0)

    def _free(self, body: Body, domain: int, context: Value, block: Value) -> None:
        self._pass_unrecorded(body, domain, context, "free", block)
        with body.when(block, likely=True):
            if self._sites and domain == tap.OBJ:
                self._sites.before_free(body, context, block)
            body.call_own(self._record, _kind(tap.FREE, domain), block, 0, 0)
        self._original(body, domain, context, "free", block)
        body.give(0)

    def _record_block(self, body: Body, op: int, domain: int, block: Value, size: Value) -> None:
        """With who asked for it, where that is to be told."""
        site = self._sites.site(body, domain, size) if self._sites else 0
        body.call_own(self._record, _kind(op, domain), block, size, site)

    def _pass_unrecorded(self, body: Body, domain: int, context: Value, verb: str, *arguments: Value) -> None:
        """Does no more than the call where nothing is recorded, or where it is part of an outer call."""
        with body.when(body.compare(body.load(context, tap.AT_ACTIVE), "==", 0), likely=False):
            body.give(self._bare(body, domain, context, verb, *arguments))
        if domain == tap.RAW:
            with body.when(body.compare(body.load(context, tap.AT_INSIDE), "==", body.thread()), likely=False):
                body.give(self._bare(body, domain, context, verb, *arguments))

    def _original(self, body: Body, domain: int, context: Value, verb: str, *arguments: Value) -> Value:
        """The call itself, with word of who is inside."""
        if domain != tap.RAW:
            body.store(context, tap.AT_INSIDE, body.thread())
        result = self._bare(body, domain, context, verb, *arguments)
        if domain != tap.RAW:
            body.store(context, tap.AT_INSIDE, 0)
        return result

    def _bare(self, body: Body, domain: int, context: Value, verb: str, *arguments: Value | int) -> Value:
        words = tap.AT_ORIGINALS + 40 * domain
        function = body.load(context, words + 8 * (1 + ("malloc", "calloc", "realloc", "free").index(verb)))
        return body.call(function, body.load(context, words), *arguments)

    def arena_allocator(self) -> None:
        """Counts arenas even before the recording begins: draining goes by them."""
        body = self.program.function("arena_alloc", 2)
        context, size = body.near(-tap.TEXT_AT), body.arguments[1]
        original = body.load(context, tap.AT_ORIGINAL_ARENA)
        arena = body.call(body.load(context, tap.AT_ORIGINAL_ARENA + 8), original, size)
        with body.when(arena):
            body.store(context, tap.AT_ARENAS, body.add(body.load(context, tap.AT_ARENAS), 1))
            body.store(context, tap.AT_ARENA, arena)
            body.store(context, tap.AT_ARENA_BYTES, size)
            self._record_if_active(body, context, tap.ARENA_MAPPED, arena, size)
            with body.when(body.load(context, tap.AT_ACTIVE)):
                self._note_separate_heap(body, context)
        body.give(arena)
        body = self.program.function("arena_free", 3)
        context, (_, arena, size) = body.near(-tap.TEXT_AT), body.arguments
        self._record_if_active(body, context, tap.ARENA_UNMAPPED, arena, size)
        original = body.load(context, tap.AT_ORIGINAL_ARENA)
        body.call(body.load(context, tap.AT_ORIGINAL_ARENA + 16), original, arena, size)
        body.give(0)

    def _note_separate_heap(self, body: Body, context: Value) -> None:
        """Notes if the arena is for an interpreter that does not share pymalloc with the main one.

        Such an interpreter takes an arena of its own when it is made. CPython 3.12 tells by one function, later ones by
        another; before, all interpreters share.
        """
        shared, current = body.load(context, tap.AT_SHARED), body.load(context, tap.AT_THREAD_STATE_NOW)
        has_feature, config_of = body.load(context, tap.AT_HAS_FEATURE), body.load(context, tap.AT_CONFIG_OF)
        with body.when(body.either(has_feature, config_of)):
            state = body.call(current)
            with body.when(state):
                interpreter = body.call(body.load(context, tap.AT_INTERPRETER_OF), state)
                config = body.room(_CONFIG_WORDS)
                body.store(config, 0, 1)
                with body.when(config_of):
                    body.call(config_of, config, interpreter)
                with body.when(has_feature):
                    body.store(config, 0, body.call(has_feature, interpreter, _USE_MAIN_OBMALLOC))
                with body.when(body.compare(body.low_half(body.load(config)), "==", 0)):
                    body.publish(shared, tap.AT_SEPARATE_HEAPS, 1)

    def marks(self) -> None:
        """put(op, value), for marks; and the collector's callback, a builtin function that makes no objects."""
        body = self.program.function("put", 2)
        op, value = body.arguments
        kind = body.either(body.shift_left(op, tap.SIZE_BITS), _kind(0, tap.OBJ))
        with body.when(body.load(body.near(-tap.TEXT_AT), tap.AT_ACTIVE)):
            body.call_own(self._record, kind, 0, value, 0)
        body.give(0)
        body = self.program.function("gc_callback", 3)
        context, name = body.near(-tap.TEXT_AT), body.load(body.arguments[1])
        starts = body.compare(body.load(name, frames.STR_LENGTH_AT), "==", len("start"))
        kind = body.select(starts, _kind(tap.GC_START, tap.OBJ), _kind(tap.GC_END, tap.OBJ))
        with body.when(body.load(context, tap.AT_ACTIVE)):
            body.call_own(self._record, kind, 0, 0, 0)
        nothing = body.load(context, tap.AT_NONE)
        body.call(body.load(context, tap.AT_INCREF), nothing)
        body.give(nothing)

    def _record_if_active(self, body: Body, context: Value, op: int, address: Value, size: Value) -> None:
        with body.when(body.load(context, tap.AT_ACTIVE)):
            body.call_own(self._record, _kind(op, tap.OBJ), address, size, 0)

    def begin(self) -> None:
        """begin(pool_bytes): drains pymalloc unless that is 0, and records from then on."""
        body = self.program.function("begin", 1)
        (pool_bytes,) = body.arguments
        context = body.near(-tap.TEXT_AT)
        with body.when(pool_bytes):
            self._drain(body, context, pool_bytes)
        body.publish(context, tap.AT_ACTIVE, 1)
        body.give(0)

    def count(self) -> None:
        """count(function, file, place, get, set): calls the function with the file, between two records of pymalloc's.

        The caller has the GIL, so nobody else calls pymalloc. The function counts only where pymalloc is the allocator
        of obj, so for that time it is, by PyMem_GetAllocator and PyMem_SetAllocator. Which record comes next is told at
        `place`.
        """
        body = self.program.function("count", 5)
        function, file, place, get, set_ = body.arguments
        context, hooked = body.near(-tap.TEXT_AT), body.room(5)
        shared = body.load(context, tap.AT_SHARED)
        body.call(get, tap.OBJ, hooked)
        body.call(set_, tap.OBJ, body.add(context, tap.AT_ORIGINALS + 40 * tap.OBJ))
        following = body.add(body.load_shared(shared, tap.AT_HEAD), 1)
        body.call(function, file)
        body.call(set_, tap.OBJ, hooked)
        body.publish(body.add(shared, place), 0, following)
        body.give(0)

    def give_back(self) -> None:
        """give_back(): frees what filled the pools, once nothing is recorded any more."""
        body = self.program.function("give_back", 0)
        context = body.near(-tap.TEXT_AT)
        with body.repeat():
            block = body.load(context, tap.AT_FILLING)
            body.leave_when(body.compare(block, "==", 0))
            body.store(context, tap.AT_FILLING, body.load(block))
            self._bare(body, tap.OBJ, context, "free", block)
        body.give(0)

    def _fill(self, body: Body, context: Value, size: int) -> Value:
        """A block that is there to fill a pool; its first word is the one before it."""
        block = self._bare(body, tap.OBJ, context, "malloc", size)
        body.store(block, 0, body.load(context, tap.AT_FILLING))
        body.store(context, tap.AT_FILLING, block)
        return block

    def _drain(self, body: Body, context: Value, pool_bytes: Value) -> None:
        """Allocates until every pool of every arena is full; pymalloc is then as good as untouched.

        A new arena appears when there is no free pool left. One pool of it goes to each class once the class has no
        room elsewhere, and blocks of the largest class fill the others.
        """
        arenas = body.load(context, tap.AT_ARENAS)
        with body.repeat():
            self._fill(body, context, _SMALL_BYTES)
            body.leave_when(body.compare(body.load(context, tap.AT_ARENAS), "!=", arenas))
        start, length = body.load(context, tap.AT_ARENA), body.load(context, tap.AT_ARENA_BYTES)
        for size in range(_CLASS_BYTES, _SMALL_BYTES, _CLASS_BYTES):
            with body.repeat():
                block = self._fill(body, context, size)
                body.leave_when(body.compare(body.subtract(block, start), "<", length))
        missing = body.both(body.subtract(0, start), body.subtract(pool_bytes, 1))
        pools = body.divide(body.subtract(length, missing), pool_bytes)
        room = body.subtract(pool_bytes, _POOL_HEADER_BYTES)
        for size in range(_CLASS_BYTES, _SMALL_BYTES + 1, _CLASS_BYTES):
            blocks = body.divide(room, size)
            if size == _SMALL_BYTES:
                blocks = body.multiply(blocks, body.subtract(pools, _CLASSES - 1))
            self._take(body, context, size, body.subtract(blocks, 1))

    def _take(self, body: Body, context: Value, size: int, blocks: Value) -> None:
        taken = body.room(1)
        body.store(taken, 0, 0)
        with body.repeat():
            body.leave_when(body.compare(body.load(taken), "==", blocks))
            self._fill(body, context, size)
            body.store(taken, 0, body.add(body.load(taken), 1))


def _kind(op: int, domain: int) -> int:
    """Both at their place in the packed word."""
    return op << tap.SIZE_BITS | domain << (tap.SIZE_BITS + tap.OP_BITS)
