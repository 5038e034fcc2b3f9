"""The part of the hooks that finds the types of objects. `replay.recorder.object_types` defines notes and tables.

An object's type is at one of three places in its block, by the length of the headers before the object:

    8     no header
    24    the collector's header, 16 bytes
    40    a header of 16 bytes for dict and weak references, then the collector's

The value of a type in the table has its number, the length of these headers, the bytes of its smallest block and
whether its objects are types. The hooks do not know the length of a block, so they can find the type of the next block
behind a short one. The writer knows the lengths and ignores a type that does not fit. All functions run with the GIL,
except those of interpreters with a GIL of their own: these find no candidates.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from replay.recorder import frames, object_types, sites, tap
from replay.recorder.hook_kinds import TRACKED
from replay.recorder.machine_code import Body, Program, Value
from replay.recorder.note_hooks import NoteHooks, make_slot, whole_words

KNOWN = 1 << 63
"""In a result of `find`: the low 32 bits are the number of a type. Otherwise it is an unknown pointer, or 0."""
_NUMBERS = 1 << 2 * tap.SITE_BITS
_HEADER_BYTES = 16
_OBJECT_BYTES = 16
"""Reference count and type."""
_TYPES_MOST = 3 << (object_types.TABLE_BITS - 2)
"""Maximum number of addresses in the table."""
_LEAST_POINTER, _POINTER_BITS = 1 << 16, 47
_COUNT_LIMIT = 1 << 33
"""Reference counts are lower, those of immortal objects too."""
_PRE_HEADER_FLAGS: dict[tuple[int, ...], int] = {(3, 11): 1 << 4}
"""Bits of tp_flags for a header before the collector's; of later versions the default."""
_PRE_HEADER_FLAGS_SINCE = 1 << 3 | 1 << 4
_TRIES = 16
"""Examinations of a candidate that is no type. The low bits of its address count them."""
_LIST_ITEMS_AT = 24
_SMALL_INT_AT = 24
"""In an int: its lowest digit."""


class Found(NamedTuple):
    """What a free records: the number of the block's type and KNOWN_TYPE plus its smallest block; or 0 and an unknown
    pointer."""

    number: Value
    pointer_or_bytes: Value


class TypeHooks:
    """Adds the functions for types to a program of hooks. `version`: of the recorded CPython."""

    def __init__(self, program: Program, wait: Body, notes: NoteHooks, version: tuple[int, ...]) -> None:
        self._program, self._wait, self._notes = program, wait, notes
        self._pre_header_flags = _PRE_HEADER_FLAGS.get(version, _PRE_HEADER_FLAGS_SINCE)
        self._slot = make_slot(program, "type_slot", object_types.AT_TYPE_TABLE, object_types.TABLE_BITS)
        self._note = self._make_note()
        self._find = self._make_find()
        self._examine = self._make_examine()
        self._add_candidate = self._make_add_candidate()
        self._make_answer()
        self._make_notes()

    def after_malloc(self, body: Body, context: Value, block: Value, size: Value) -> None:
        """Makes a large block a candidate for a heap type."""
        with body.if_(body.compare(size, ">=", body.load(context, object_types.AT_LEAST_BYTES)), likely=False):
            body.call_own(self._add_candidate, block)

    def before_free(self, body: Body, context: Value, block: Value) -> Found:
        """Returns the type of a block. Ends its number if the block is a type."""
        with body.if_(body.load(context, object_types.AT_CANDIDATES), likely=False):
            body.call_own(self._examine, block, 0)
        found = body.call_own(self._find, block)
        known = body.shift_right(found, 63)
        is_type = body.bit_and(body.shift_right(found, object_types.IS_TYPE_SHIFT), 1)
        with body.if_(body.bit_and(is_type, known), likely=False):
            body.store(body.call_own(self._slot, body.add(block, _HEADER_BYTES)), 8, 0)
        if_known, if_unknown = body.subtract(0, known), body.subtract(known, 1)
        least_bytes = body.bit_or(self._least_bytes(body, found), object_types.KNOWN_TYPE)
        return Found(
            body.bit_and(body.bit_and(found, _NUMBERS - 1), if_known),
            body.bit_or(body.bit_and(least_bytes, if_known), body.bit_and(found, if_unknown)),
        )

    def _least_bytes(self, body: Body, value: Value) -> Value:
        """Returns the bytes of the smallest block, headers included, in the value of a type."""
        return body.bit_and(body.shift_right(value, object_types.LEAST_SHIFT), object_types.LEAST_MOST)

    def _headers(self, body: Body, value: Value) -> Value:
        """Returns the bytes of the headers in the value of a type."""
        return body.bit_and(body.shift_right(value, object_types.HEADER_SHIFT - 4), 3 * _HEADER_BYTES)

    def at_collection(self, body: Body, context: Value, starts: Value, info: Value) -> Value:
        """Returns the generation of a collection that starts, or the number of objects that one found as it ends.

        Gives candidates a number before it starts.
        """
        get = body.load(context, object_types.AT_DICT_ITEM)
        at_key = body.select(starts, object_types.AT_GENERATION_KEY, object_types.AT_COLLECTED_KEY)
        figure = body.low_half(body.load(body.call(get, info, body.load(body.add(context, at_key))), _SMALL_INT_AT))
        with body.if_(body.bit_and(starts, body.compare(body.load(context, object_types.AT_CANDIDATES), "!=", 0))):
            body.call_own(self._examine, 0, 1)
        body.store(context, object_types.AT_COLLECTING, starts)
        return figure

    def _make_find(self) -> Body:
        """find(block): the value of its type in the table plus KNOWN; else a pointer that may be a type, or 0.

        BEHIND_HEADER is added to the pointer if it follows a header.
        """
        body = self._program.function("find_type", 1, "noinline", "internal")
        (block,) = body.arguments
        first = body.load(block, frames.TYPE_AT)
        self._return_known(body, first, 0)
        # A block of 16 bytes at the end of a pool may be at the end of mapped memory.
        with self._inside_pool(body, block, _HEADER_BYTES):
            second = body.load(block, _HEADER_BYTES + frames.TYPE_AT)
            self._return_known(body, second, _HEADER_BYTES)
            with self._inside_pool(body, block, 2 * _HEADER_BYTES):
                third, count = (body.load(block, 2 * _HEADER_BYTES + at) for at in (frames.TYPE_AT, 0))
                # The keys of a dict can have the hash of an int there, which can be the address of a type.
                with body.if_(body.compare(count, "<", _COUNT_LIMIT)):
                    self._return_known(body, third, 2 * _HEADER_BYTES)
            self._return_pointer(body, body.load(block), first, 0)
            self._return_pointer(body, body.load(block, _HEADER_BYTES), second, object_types.BEHIND_HEADER)
            body.return_(0)
        self._return_pointer(body, body.load(block), first, 0)
        body.return_(0)
        return body

    @contextmanager
    def _inside_pool(self, body: Body, block: Value, offset: int) -> Iterator[None]:
        """Only if the block does not end a pool after `offset` bytes."""
        with body.if_(body.bit_and(body.add(block, offset), tap.POOL_BYTES - 1), likely=True):
            yield

    def _return_known(self, body: Body, pointer: Value, header_bytes: int) -> None:
        """Returns the value of the type at `pointer`, if it is known and its objects have such headers."""
        with body.if_(body.compare(pointer, ">=", _LEAST_POINTER)):
            value = body.load(body.call_own(self._slot, pointer), 8)
            fits = body.compare(self._headers(body, value), "==", header_bytes)
            with body.if_(body.bit_and(body.compare(value, "!=", 0), fits), likely=True):
                body.return_(body.bit_or(value, KNOWN))

    def _return_pointer(self, body: Body, count: Value, pointer: Value, mark: int) -> None:
        """Returns the pointer plus `mark` if it can be a type, after a word that can be a reference count."""
        is_pointer = body.bit_and(
            body.compare(body.subtract(pointer, _LEAST_POINTER), "<", (1 << _POINTER_BITS) - _LEAST_POINTER),
            body.compare(body.bit_and(pointer, 7), "==", 0),
        )
        with body.if_(body.bit_and(is_pointer, body.compare(count, "<", _COUNT_LIMIT)), likely=False):
            body.return_(body.bit_or(pointer, mark))

    def _make_add_candidate(self) -> Body:
        """add_candidate(block): ignores the block if there are too many candidates."""
        body = self._program.function("add_candidate", 1, "noinline", "internal")
        context = body.code_relative(-tap.TEXT_AT)
        count = body.load(context, object_types.AT_CANDIDATES)
        separate = body.load(body.load(context, tap.AT_SHARED), tap.AT_SEPARATE_HEAPS)
        room = body.compare(count, "<", object_types.CANDIDATES_MOST)
        with body.if_(body.bit_and(room, body.compare(separate, "==", 0))):
            place = body.add(context, body.shift_left(count, 3))
            body.store(place, object_types.AT_CANDIDATE, body.arguments[0])
            body.store(context, object_types.AT_CANDIDATES, body.add(count, 1))
        body.return_(0)
        return body

    def _make_examine(self) -> Body:
        """examine(freed, keep): gives complete types among the candidates a number.

        Removes `freed`, and with `keep` 0 also blocks that were no types at `_TRIES` examinations. While a collection
        runs, it only removes `freed`: CPython up to 3.11 collects in the allocation of a block whose type is not set
        yet, and frees some blocks before it sets it.
        """
        body = self._program.function("examine", 2, "noinline", "internal")
        freed, keep = body.arguments
        context, index = body.code_relative(-tap.TEXT_AT), body.stack_words(1)
        rests = body.load(context, object_types.AT_COLLECTING)
        body.store(index, 0, 0)
        with body.loop():
            at, count = body.load(index), body.load(context, object_types.AT_CANDIDATES)
            body.break_if(body.compare(at, ">=", count))
            place = body.add(context, body.shift_left(at, 3))
            candidate, done = body.load(place, object_types.AT_CANDIDATE), body.stack_words(1)
            tries = body.bit_and(candidate, _TRIES - 1)
            block = body.subtract(candidate, tries)
            body.store(done, 0, body.compare(block, "==", freed))
            with body.if_(body.compare(body.bit_or(body.load(done), rests), "==", 0)):
                pointer = body.load(block, _HEADER_BYTES + frames.TYPE_AT)
                value = body.load(body.call_own(self._slot, pointer), 8)
                with body.if_(body.bit_and(value, object_types.IS_TYPE_BIT)):
                    body.store(done, 0, self._note_if_ready(body, context, body.add(block, _HEADER_BYTES)))
                with body.if_(body.compare(body.bit_or(keep, body.bit_and(value, object_types.IS_TYPE_BIT)), "==", 0)):
                    body.store(place, object_types.AT_CANDIDATE, body.add(candidate, 1))
                    body.store(done, 0, body.compare(tries, "==", _TRIES - 1))
            with body.if_(body.load(done)):
                last = body.add(context, body.shift_left(body.subtract(count, 1), 3))
                body.store(place, object_types.AT_CANDIDATE, body.load(last, object_types.AT_CANDIDATE))
                body.store(context, object_types.AT_CANDIDATES, body.subtract(count, 1))
            body.store(index, 0, body.add(at, body.bit_and(body.add(body.load(done), 1), 1)))
        body.return_(0)
        return body

    def _note_if_ready(self, body: Body, context: Value, type_: Value) -> Value:
        """Gives a type a number if it is complete; returns whether it is."""
        is_ready = body.stack_words(1)
        body.store(is_ready, 0, 0)
        with body.if_(body.bit_and(body.load(type_, object_types.FLAGS_AT), object_types.READY)):
            get, key = (body.load(context, at) for at in (object_types.AT_DICT_ITEM, object_types.AT_MODULE_KEY))
            module = body.call(get, body.load(type_, object_types.TYPE_DICT_AT), key)
            name = body.load(body.add(type_, body.load(context, object_types.AT_QUALNAME)))
            body.call_own(self._note, type_, module, name)
            body.store(is_ready, 0, 1)
        return body.load(is_ready)

    def _make_note(self) -> Body:
        """note_type(type, module, name): gives a type a number if it has none; writes a note. Returns 0.

        `module` can be 0 or no str.
        """
        body = self._program.function("note_type", 3, "noinline", "internal")
        type_, module, name = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        shared, slot = body.load(context, tap.AT_SHARED), body.call_own(self._slot, type_)
        self._number(body, context, slot, type_)
        number = body.bit_and(body.load(slot, 8), _NUMBERS - 1)
        text = body.stack_words(1)
        body.store(text, 0, name)  # replaced by a module that is a str
        has_module = body.stack_words(1)
        body.store(has_module, 0, 0)
        with body.if_(body.compare(module, "!=", 0)):
            is_str = body.compare(body.load(module, frames.TYPE_AT), "==", body.load(context, object_types.AT_STR_TYPE))
            with body.if_(is_str):
                body.store(text, 0, module)
                body.store(has_module, 0, 1)
        length = body.add(whole_words(body, self._notes.measure(body, name)), 8 * object_types.NOTE_WORDS)
        length = body.add(length, whole_words(body, self._notes.measure(body, body.load(text))))
        begin = body.load(shared, sites.AT_NOTES_HEAD)
        end = body.add(begin, length)
        self._notes.wait_for_room(body, shared, length, end)
        at = self._notes.put_word(body, shared, begin, body.bit_or(number, object_types.TYPE_NOTE))
        at = self._notes.put_word(body, shared, at, type_)
        flags = body.low_half(body.load(type_, object_types.FLAGS_AT))
        layout = body.bit_and(body.load(slot, 8), object_types.LAYOUT_BITS)
        module_bit = body.multiply(body.load(has_module), object_types.HAS_MODULE)
        at = self._notes.put_word(body, shared, at, body.bit_or(body.bit_or(flags, layout), module_bit))
        at = self._notes.copy_text(body, body.load(text), at)
        self._notes.copy_text(body, name, at)
        body.publish(shared, sites.AT_NOTES_HEAD, end)
        body.return_(0)
        return body

    def _number(self, body: Body, context: Value, slot: Value, type_: Value) -> None:
        """Gives the type of a slot a number if it has none. Without room, the generated function returns 0."""
        with body.if_(body.compare(body.load(slot, 8), "==", 0)):
            with body.if_(body.compare(body.load(slot), "==", 0)):
                types = body.add(body.load(context, object_types.AT_TYPES), 1)
                with body.if_(body.compare(types, ">", _TYPES_MOST)):
                    body.return_(0)
                body.store(context, object_types.AT_TYPES, types)
            number = body.load(context, object_types.AT_NEXT_TYPE)
            body.store(context, object_types.AT_NEXT_TYPE, body.add(number, 1))
            body.store(slot, 8, body.bit_or(number, self._layout(body, type_)))
            body.store(slot, 0, type_)

    def _layout(self, body: Body, type_: Value) -> Value:
        """Returns the value of a type without its number."""
        flags = body.load(type_, object_types.FLAGS_AT)
        collected = body.compare(body.bit_and(flags, object_types.COLLECTED), "!=", 0)
        more = body.compare(body.bit_and(flags, self._pre_header_flags), "!=", 0)
        headers, least = body.add(collected, more), body.stack_words(1)
        # The collector allocates at least tp_basicsize; a str or a datetime, which it does not know, can be shorter.
        object_bytes = body.multiply(body.load(type_, object_types.BASIC_SIZE_AT), collected)
        body.store(least, 0, body.add(object_bytes, body.multiply(headers, _HEADER_BYTES)))
        with body.if_(body.compare(collected, "==", 0)):
            body.store(least, 0, _OBJECT_BYTES)
        with body.if_(body.compare(body.load(least), ">", object_types.LEAST_MOST)):
            body.store(least, 0, object_types.LEAST_MOST)
        is_type = body.compare(body.bit_and(flags, object_types.IS_TYPE), "!=", 0)
        return body.bit_or(
            body.shift_left(body.load(least), object_types.LEAST_SHIFT),
            body.bit_or(
                body.shift_left(headers, object_types.HEADER_SHIFT),
                body.shift_left(is_type, object_types.IS_TYPE_SHIFT),
            ),
        )

    def _make_notes(self) -> None:
        """note_types(list): calls `note_type` for each three items of a Python list."""
        body = self._program.function("note_types", 1)
        (types,) = body.arguments
        index, count, items = body.stack_words(1), body.load(types, frames.ITEMS_AT), body.load(types, _LIST_ITEMS_AT)
        body.store(index, 0, 0)
        with body.loop():
            at = body.load(index)
            body.break_if(body.compare(at, ">=", count))
            place = body.add(items, body.shift_left(at, 3))
            body.call_own(self._note, *(body.load(place, 8 * item) for item in range(3)))
            body.store(index, 0, body.add(at, 3))
        body.return_(0)

    def _make_answer(self) -> None:
        """answer_types(): replaces addresses of live blocks by their types, as often as the writer asks."""
        body = self._program.function("answer_types", 0)
        context = body.code_relative(-tap.TEXT_AT)
        shared, rounds, index = body.load(context, tap.AT_SHARED), body.stack_words(1), body.stack_words(1)
        body.store(rounds, 0, 0)
        with body.loop():
            asked = body.add(body.load(rounds), 1)
            body.store(rounds, 0, asked)
            with body.if_(body.compare(body.call_own(self._wait, tap.AT_TYPES_ASKED, asked), "==", 0)):
                body.return_(0)
            count = body.load(shared, tap.AT_TYPES_COUNT)
            body.break_if(body.compare(count, "==", 0))
            body.store(index, 0, 0)
            with body.loop():
                at = body.load(index)
                body.break_if(body.compare(at, "==", count))
                place = body.add(body.add(shared, tap.TYPES_AT), body.shift_left(at, 3))
                body.store(place, 0, self._answer(body, body.load(place)))
                body.store(index, 0, body.add(at, 1))
            body.publish(shared, tap.AT_TYPES_ANSWERED, asked)
        body.return_(0)

    def _answer(self, body: Body, block: Value) -> Value:
        """Returns the result of `find`, with TRACKED instead of the length of headers of a known type."""
        found = body.call_own(self._find, block)
        known = body.shift_right(found, 63)
        headers = body.multiply(self._headers(body, found), known)
        tracked = body.stack_words(1)
        body.store(tracked, 0, 0)
        with body.if_(headers):
            link = body.load(body.subtract(body.add(block, headers), _HEADER_BYTES))
            body.store(tracked, 0, body.multiply(body.compare(link, "!=", 0), TRACKED))
        of_known = body.bit_and(found, _NUMBERS - 1 | object_types.LEAST_MOST << object_types.LEAST_SHIFT | KNOWN)
        of_unknown = body.bit_and(found, (1 << _POINTER_BITS) - 1)
        answer = body.bit_or(
            body.bit_and(of_known, body.subtract(0, known)), body.bit_and(of_unknown, body.subtract(known, 1))
        )
        return body.bit_or(answer, body.load(tracked))
