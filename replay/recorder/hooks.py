"""The hooks of a recorded program's allocators. `replay.recorder.tap` defines the memory layout.

A hook claims a record in the ring, fills it, and publishes it with the store of its last word. If the ring is full, the
hook waits for the writer. The order of the records is correct across threads: a hook claims the record of a free before
the call, and that of a malloc after it. So no other thread can claim a malloc of the same address in between. A realloc
is both and claims two records.

A call of the domains mem or obj can call raw: for a large block, or for pymalloc's own tables. This inner call is not
recorded. One word has the thread inside such an outer call, because it must hold the GIL. Raw hooks, which run without
the GIL, compare it with their own thread.

Hooks find their context relative to their own address and ignore the `ctx` argument of CPython: while hooks are
installed or removed, a thread without the GIL can see the function of one allocator with the `ctx` of another.

Hooks with call sites or object types are separate sets, so that hooks without them are not slower:
`replay.recorder.site_hooks`, `replay.recorder.type_hooks`.
"""

from functools import cache

from replay.recorder import frames, tap
from replay.recorder.hook_kinds import Code, Extras
from replay.recorder.machine_code import Body, Program, Value, assemble
from replay.recorder.note_hooks import NoteHooks
from replay.recorder.site_hooks import SiteHooks
from replay.recorder.type_hooks import TypeHooks

_CLOCK_MONOTONIC = 1
_SMALL_BYTES, _CLASS_BYTES, _POOL_HEADER_BYTES = 512, 16, 48
"""Constants of pymalloc, the same in every supported 64-bit CPython."""
_CLASSES = _SMALL_BYTES // _CLASS_BYTES
_SLOTS = 1 << tap.RING_BITS
_USE_MAIN_OBMALLOC = 1 << 5
"""Py_RTFLAGS_USE_MAIN_OBMALLOC."""
_CONFIG_WORDS = 8
"""Size of PyInterpreterConfig: seven ints; `use_main_obmalloc` is the first."""
_CHECK_EVERY = 1 << 10
"""Number of pauses after which a waiting hook checks whether the writer is alive."""


@cache
def make_hooks(counter: bool, extras: Extras | None = None) -> Code:
    """Returns machine code that exports `tap.ENTRIES`; those of `find_site` and of types only with these extras.

    `counter`: times are the processor's counter, not the kernel's clock.
    """
    hooks = _Hooks(counter, extras)
    hooks.allocator("raw", tap.RAW)
    hooks.allocator("mem", tap.MEM)
    hooks.allocator("obj", tap.OBJ)
    hooks.arena_allocator()
    hooks.marks()
    hooks.begin()
    hooks.count()
    hooks.free_filling()
    return assemble(hooks.program)


class _Hooks:
    def __init__(self, counter: bool, extras: Extras | None) -> None:
        self.program = Program()
        self._counter = counter
        self._wait = self._make_wait()
        self._sites: SiteHooks | None = None
        self._types: TypeHooks | None = None
        if extras and (extras.sites or extras.types):
            layout = frames.LAYOUTS[extras.version]
            notes = NoteHooks(self.program, self._wait, layout)
            self._sites = SiteHooks(self.program, notes, layout) if extras.sites else None
            self._types = TypeHooks(self.program, self._wait, notes, extras.version) if extras.types else None
        self._record = self._make_record()

    def _make_wait(self) -> Body:
        """wait(at, least): waits until the writer's count at `at` is at least `least`.

        Returns 0 if the recording has ended or the writer has died, else 1.
        """
        body = self.program.function("wait", 2, "noinline", "internal")
        at, least = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        shared = body.load(context, tap.AT_SHARED)
        errno_at = body.call(body.load(context, tap.AT_ERRNO))
        errno, pauses = body.load(errno_at), body.stack_words(1)
        body.store(pauses, 0, 0)
        with body.loop():
            with body.if_(body.compare(body.load_shared(context, tap.AT_ACTIVE), "==", 0)):
                body.return_(0)
            body.call(body.load(context, tap.AT_SLEEP), body.add(context, tap.AT_PAUSE), 0)
            passed = body.add(body.load(pauses), 1)
            body.store(pauses, 0, passed)
            with body.if_(body.compare(body.bit_and(passed, _CHECK_EVERY - 1), "==", 0)):
                kill_error = body.low_half(
                    body.call(body.load(context, tap.AT_KILL), body.load(context, tap.AT_WRITER), 0)
                )
                with body.if_(kill_error):
                    body.publish(context, tap.AT_ACTIVE, 0)
                    body.publish(shared, tap.AT_DESERTED, 1)
            body.break_if(body.compare(body.load_shared(body.add(shared, at), 0), ">=", least))
        body.store(errno_at, 0, errno)
        body.return_(1)
        return body

    def _make_record(self) -> Body:
        """record(kind, address, size, site): writes a record. `kind` has op and domain at their bits of the packed
        word.

        Hooks without call sites pass the site 0.
        """
        body = self.program.function("record", 4, "alwaysinline", "internal")
        kind, address, size, site = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        shared = body.load(context, tap.AT_SHARED)
        index = body.claim(shared, tap.AT_HEAD)
        room_end = body.add(body.load_shared(shared, tap.AT_TAIL), _SLOTS)
        with body.if_(body.compare(room_end, "<=", index), likely=False):
            done = body.call_own(self._wait, tap.AT_TAIL, body.subtract(index, _SLOTS - 1))
            with body.if_(body.compare(done, "==", 0)):
                body.return_(0)
        place = body.multiply(body.bit_and(index, _SLOTS - 1), tap.RECORD_BYTES)
        slot = body.add(body.add(shared, tap.RING_AT), place)
        body.store(slot, 8, self._now(body, context))
        low, high = site, body.shift_right(site, tap.SITE_BITS)
        body.store(slot, 16, body.bit_or(body.thread(), body.shift_left(low, tap.NUMBER_BITS)))
        body.store(slot, 24, body.bit_or(address, body.shift_left(high, tap.NUMBER_BITS)))
        lap = body.shift_left(body.add(body.shift_right(index, tap.RING_BITS), 1), 64 - tap.LAP_BITS)
        body.publish(slot, 0, body.bit_or(body.bit_or(lap, kind), size))
        body.return_(0)
        return body

    def _now(self, body: Body, context: Value) -> Value:
        if self._counter:
            return body.counter()
        time = body.stack_words(2)
        body.call(body.load(context, tap.AT_CLOCK), _CLOCK_MONOTONIC, time)
        return body.add(body.multiply(body.load(time), 1_000_000_000), body.load(time, 8))

    def allocator(self, name: str, domain: int) -> None:
        """Generates the four hooks of a domain."""
        for verb, arguments in (("malloc", 1), ("calloc", 2), ("realloc", 2), ("free", 1)):
            body = self.program.function(f"{name}_{verb}", 1 + arguments)
            getattr(self, f"_{verb}")(body, domain, body.code_relative(-tap.TEXT_AT), *body.arguments[1:])

    def _malloc(self, body: Body, domain: int, context: Value, size: Value) -> None:
        self._pass_unrecorded(body, domain, context, "malloc", size)
        block = self._call_marked(body, domain, context, "malloc", size)
        with body.if_(block, likely=True):
            self._record_block(body, tap.MALLOC, domain, block, size)
            if self._types and domain == tap.OBJ:
                self._types.after_malloc(body, context, block, size)
        body.return_(block)

    def _calloc(self, body: Body, domain: int, context: Value, items: Value, item_size: Value) -> None:
        self._pass_unrecorded(body, domain, context, "calloc", items, item_size)
        block = self._call_marked(body, domain, context, "calloc", items, item_size)
        with body.if_(block, likely=True):
            self._record_block(body, tap.CALLOC, domain, block, body.multiply(items, item_size))
        body.return_(block)

    def _realloc(self, body: Body, domain: int, context: Value, old: Value, size: Value) -> None:
        self._pass_unrecorded(body, domain, context, "realloc", old, size)
        with body.if_(body.compare(old, "==", 0)):
            block = self._call_marked(body, domain, context, "realloc", old, size)
            with body.if_(block):
                self._record_block(body, tap.MALLOC, domain, block, size)
            body.return_(block)
        body.call_own(self._record, _kind(tap.REALLOC_FROM, domain), old, 0, 0)
        block = self._call_marked(body, domain, context, "realloc", old, size)
        with body.if_(block):
            self._record_block(body, tap.REALLOC_TO, domain, block, size)
            body.return_(block)
        body.call_own(self._record, _kind(tap.REALLOC_FAILED, domain), old, 0, 0)
        body.return_(0)

    def _free(self, body: Body, domain: int, context: Value, block: Value) -> None:
        self._pass_unrecorded(body, domain, context, "free", block)
        with body.if_(block, likely=True):
            if self._sites and domain == tap.OBJ:
                self._sites.before_free(body, context, block)
            type_, pointer = (
                self._types.before_free(body, context, block) if self._types and domain == tap.OBJ else (0, 0)
            )
            body.call_own(self._record, _kind(tap.FREE, domain), block, pointer, type_)
        self._call_marked(body, domain, context, "free", block)
        body.return_(0)

    def _record_block(self, body: Body, op: int, domain: int, block: Value, size: Value) -> None:
        """Records a new block, with its call site if sites are recorded."""
        site = self._sites.site(body, domain, size) if self._sites else 0
        body.call_own(self._record, _kind(op, domain), block, size, site)

    def _pass_unrecorded(self, body: Body, domain: int, context: Value, verb: str, *arguments: Value) -> None:
        """Returns the result of the original call, unrecorded, if nothing is recorded or an outer call is recorded."""
        with body.if_(body.compare(body.load(context, tap.AT_ACTIVE), "==", 0), likely=False):
            body.return_(self._call_original(body, domain, context, verb, *arguments))
        if domain == tap.RAW:
            with body.if_(body.compare(body.load(context, tap.AT_INSIDE), "==", body.thread()), likely=False):
                body.return_(self._call_original(body, domain, context, verb, *arguments))

    def _call_marked(self, body: Body, domain: int, context: Value, verb: str, *arguments: Value) -> Value:
        """Calls the original function; meanwhile, AT_INSIDE has the calling thread."""
        if domain != tap.RAW:
            body.store(context, tap.AT_INSIDE, body.thread())
        result = self._call_original(body, domain, context, verb, *arguments)
        if domain != tap.RAW:
            body.store(context, tap.AT_INSIDE, 0)
        return result

    def _call_original(self, body: Body, domain: int, context: Value, verb: str, *arguments: Value | int) -> Value:
        words = tap.AT_ORIGINALS + 40 * domain
        function = body.load(context, words + 8 * (1 + ("malloc", "calloc", "realloc", "free").index(verb)))
        return body.call(function, body.load(context, words), *arguments)

    def arena_allocator(self) -> None:
        """Generates the hooks of the arena allocator. They count arenas before a recording too, for `_drain`."""
        body = self.program.function("arena_alloc", 2)
        context, size = body.code_relative(-tap.TEXT_AT), body.arguments[1]
        original = body.load(context, tap.AT_ORIGINAL_ARENA)
        arena = body.call(body.load(context, tap.AT_ORIGINAL_ARENA + 8), original, size)
        with body.if_(arena):
            body.store(context, tap.AT_ARENAS, body.add(body.load(context, tap.AT_ARENAS), 1))
            body.store(context, tap.AT_ARENA, arena)
            body.store(context, tap.AT_ARENA_BYTES, size)
            self._record_if_active(body, context, tap.ARENA_MAPPED, arena, size)
            with body.if_(body.load(context, tap.AT_ACTIVE)):
                self._note_separate_heap(body, context)
        body.return_(arena)
        body = self.program.function("arena_free", 3)
        context, (_, arena, size) = body.code_relative(-tap.TEXT_AT), body.arguments
        self._record_if_active(body, context, tap.ARENA_UNMAPPED, arena, size)
        original = body.load(context, tap.AT_ORIGINAL_ARENA)
        body.call(body.load(context, tap.AT_ORIGINAL_ARENA + 16), original, arena, size)
        body.return_(0)

    def _note_separate_heap(self, body: Body, context: Value) -> None:
        """Sets AT_SEPARATE_HEAPS if the arena is for an interpreter that does not share the main one's pymalloc.

        Such an interpreter maps an arena when it is created. CPython 3.12 and later versions have different functions
        for this; before 3.12, all interpreters share pymalloc.
        """
        shared, current = body.load(context, tap.AT_SHARED), body.load(context, tap.AT_THREAD_STATE_NOW)
        has_feature, config_of = body.load(context, tap.AT_HAS_FEATURE), body.load(context, tap.AT_CONFIG_OF)
        with body.if_(body.bit_or(has_feature, config_of)):
            state = body.call(current)
            with body.if_(state):
                interpreter = body.call(body.load(context, tap.AT_INTERPRETER_OF), state)
                config = body.stack_words(_CONFIG_WORDS)
                body.store(config, 0, 1)
                with body.if_(config_of):
                    body.call(config_of, config, interpreter)
                with body.if_(has_feature):
                    body.store(config, 0, body.call(has_feature, interpreter, _USE_MAIN_OBMALLOC))
                with body.if_(body.compare(body.low_half(body.load(config)), "==", 0)):
                    body.publish(shared, tap.AT_SEPARATE_HEAPS, 1)

    def marks(self) -> None:
        """put(op, value): records a mark. gc_callback: a built-in function for gc.callbacks; it creates no objects."""
        body = self.program.function("put", 2)
        op, value = body.arguments
        kind = body.bit_or(body.shift_left(op, tap.SIZE_BITS), _kind(0, tap.OBJ))
        with body.if_(body.load(body.code_relative(-tap.TEXT_AT), tap.AT_ACTIVE)):
            body.call_own(self._record, kind, 0, value, 0)
        body.return_(0)
        body = self.program.function("gc_callback", 3)
        context, name = body.code_relative(-tap.TEXT_AT), body.load(body.arguments[1])
        starts = body.compare(body.load(name, frames.STR_LENGTH_AT), "==", len("start"))
        kind = body.select(starts, _kind(tap.GC_START, tap.OBJ), _kind(tap.GC_END, tap.OBJ))
        with body.if_(body.load(context, tap.AT_ACTIVE)):
            info = body.load(body.arguments[1], 8)
            figure = self._types.at_collection(body, context, starts, info) if self._types else 0
            body.call_own(self._record, kind, 0, figure, 0)
        nothing = body.load(context, tap.AT_NONE)
        body.call(body.load(context, tap.AT_INCREF), nothing)
        body.return_(nothing)

    def _record_if_active(self, body: Body, context: Value, op: int, address: Value, size: Value) -> None:
        with body.if_(body.load(context, tap.AT_ACTIVE)):
            body.call_own(self._record, _kind(op, tap.OBJ), address, size, 0)

    def begin(self) -> None:
        """begin(pool_bytes): starts recording. Fills pymalloc's pools of that size first, unless it is 0."""
        body = self.program.function("begin", 1)
        (pool_bytes,) = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        with body.if_(pool_bytes):
            self._drain(body, context, pool_bytes)
        body.publish(context, tap.AT_ACTIVE, 1)
        body.return_(0)

    def count(self) -> None:
        """count(function, file, place, get, set): calls the function with the file; stores the next record's number.

        The caller holds the GIL, so no other thread calls pymalloc. The function counts only if pymalloc is the
        allocator of obj, so the hooks of obj are removed meanwhile with PyMem_GetAllocator and PyMem_SetAllocator.
        `place` is the offset in the shared memory for the number, which counts from 1.
        """
        body = self.program.function("count", 5)
        function, file, place, get, set_ = body.arguments
        context, hooked = body.code_relative(-tap.TEXT_AT), body.stack_words(5)
        shared = body.load(context, tap.AT_SHARED)
        body.call(get, tap.OBJ, hooked)
        body.call(set_, tap.OBJ, body.add(context, tap.AT_ORIGINALS + 40 * tap.OBJ))
        following = body.add(body.load_shared(shared, tap.AT_HEAD), 1)
        body.call(function, file)
        body.call(set_, tap.OBJ, hooked)
        body.publish(body.add(shared, place), 0, following)
        body.return_(0)

    def free_filling(self) -> None:
        """free_filling(): frees the blocks that filled the pools. Called when the recording has ended."""
        body = self.program.function("free_filling", 0)
        context = body.code_relative(-tap.TEXT_AT)
        with body.loop():
            block = body.load(context, tap.AT_FILLING)
            body.break_if(body.compare(block, "==", 0))
            body.store(context, tap.AT_FILLING, body.load(block))
            self._call_original(body, tap.OBJ, context, "free", block)
        body.return_(0)

    def _fill(self, body: Body, context: Value, size: int) -> Value:
        """Allocates a block that fills a pool. Its first word is a pointer to the previous one."""
        block = self._call_original(body, tap.OBJ, context, "malloc", size)
        body.store(block, 0, body.load(context, tap.AT_FILLING))
        body.store(context, tap.AT_FILLING, block)
        return block

    def _drain(self, body: Body, context: Value, pool_bytes: Value) -> None:
        """Allocates until every pool of every arena is full. pymalloc then behaves as in a new process.

        When no pool is free, pymalloc maps a new arena. Each class gets one pool of it when its other pools are full.
        Blocks of the largest class fill the remaining pools.
        """
        arenas = body.load(context, tap.AT_ARENAS)
        with body.loop():
            self._fill(body, context, _SMALL_BYTES)
            body.break_if(body.compare(body.load(context, tap.AT_ARENAS), "!=", arenas))
        start, length = body.load(context, tap.AT_ARENA), body.load(context, tap.AT_ARENA_BYTES)
        for size in range(_CLASS_BYTES, _SMALL_BYTES, _CLASS_BYTES):
            with body.loop():
                block = self._fill(body, context, size)
                body.break_if(body.compare(body.subtract(block, start), "<", length))
        missing = body.bit_and(body.subtract(0, start), body.subtract(pool_bytes, 1))
        pools = body.divide(body.subtract(length, missing), pool_bytes)
        usable_bytes = body.subtract(pool_bytes, _POOL_HEADER_BYTES)
        for size in range(_CLASS_BYTES, _SMALL_BYTES + 1, _CLASS_BYTES):
            blocks = body.divide(usable_bytes, size)
            if size == _SMALL_BYTES:
                blocks = body.multiply(blocks, body.subtract(pools, _CLASSES - 1))
            self._fill_with(body, context, size, body.subtract(blocks, 1))

    def _fill_with(self, body: Body, context: Value, size: int, blocks: Value) -> None:
        count = body.stack_words(1)
        body.store(count, 0, 0)
        with body.loop():
            body.break_if(body.compare(body.load(count), "==", blocks))
            self._fill(body, context, size)
            body.store(count, 0, body.add(body.load(count), 1))


def _kind(op: int, domain: int) -> int:
    """Returns op and domain at their bits of the packed word."""
    return op << tap.SIZE_BITS | domain << (tap.SIZE_BITS + tap.OP_BITS)
