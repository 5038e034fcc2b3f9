"""The part of the hooks that tells who allocates; `replay.recorder.sites` says what a call site's number is.

Hooks of mem and obj run with the GIL, which is what guards the table of codes and the notes. A raw hook looks whether
its thread has it, by the current thread state; if not, the call has no site. What is running is read as CPython's own
`sys._getframe` reads it: the innermost frame that has begun, past those that C put between. Of other interpreters in
the process nothing is told, for they can have a GIL of their own.
"""

from replay.recorder import frames, sites, tap
from replay.recorder.frames import Layout
from replay.recorder.machine_code import Body, Program, Value

_HASH = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: products with it differ in their highest bits."""
_CODES_MOST = 3 << (sites.TABLE_BITS - 2)
"""Where the table is that full, codes at new addresses go without numbers."""
_NUMBERS = 1 << 2 * tap.SITE_BITS


class SiteHooks:
    """Functions of a program of hooks; `wait` is theirs that waits for the writer."""

    def __init__(self, program: Program, wait: Body, layout: Layout) -> None:
        self._program, self._wait, self._layout = program, wait, layout
        self._slot = self._make_slot()
        self._copy = self._make_copy()
        self._measure_text = self._make_measure_text()
        self._copy_text = self._make_copy_text()
        self._note = self._make_note()
        self._find, self._find_raw = self._make_find(is_raw=False), self._make_find(is_raw=True)
        self._of_bytes, self._of_raw_bytes = self._make_of_bytes(), self._make_of_raw_bytes()
        self._forget = self._make_forget()
        trial = program.function("find_site", 0)
        trial.give(trial.call_own(self._find))

    def site(self, body: Body, domain: int, size: Value) -> Value:
        """The number of the running call's site; 0 if it is not wanted or not known."""
        if domain == tap.RAW:
            return body.call_own(self._of_raw_bytes, size)
        return body.call_own(self._of_bytes, size, sites.AT_BYTES + 8 * domain)

    def before_free(self, body: Body, context: Value, block: Value) -> None:
        """Takes its numbers from a code that dies: what is freed as an object still says what it was."""
        is_code = body.compare(body.load(block, frames.TYPE_AT), "==", body.load(context, sites.AT_CODE_TYPE))
        with body.when(is_code, likely=False):
            body.call_own(self._forget, block)

    def _make_of_bytes(self) -> Body:
        """of_bytes(size, at): the site, of every call or of one in so many bytes; the bytes left are at `at`."""
        body = self._program.function("site_of_bytes", 2, "alwaysinline", "internal")
        size, at = body.arguments
        context = body.near(-tap.TEXT_AT)
        place = body.add(context, at)
        left = body.load(place)
        with body.when(body.compare(size, "<", left)):
            body.store(place, 0, body.subtract(left, size))
            body.give(0)
        every = body.load(context, sites.AT_EVERY)
        with body.when(body.compare(every, "!=", 1)):
            passed = body.remainder(body.subtract(size, left), every)
            body.store(place, 0, body.subtract(every, passed))
        body.give(body.call_own(self._find))
        return body

    def _make_of_raw_bytes(self) -> Body:
        """The same for threads that count at once."""
        body = self._program.function("site_of_raw_bytes", 1, "noinline", "internal")
        (size,) = body.arguments
        context = body.near(-tap.TEXT_AT)
        every = body.load(context, sites.AT_EVERY)
        with body.when(body.compare(every, "!=", 1)):
            passed = body.remainder(body.claim(context, sites.AT_BYTES + 8 * tap.RAW, size), every)
            with body.when(body.compare(body.add(passed, size), "<", every)):
                body.give(0)
        body.give(body.call_own(self._find_raw))
        return body

    def _make_find(self, *, is_raw: bool) -> Body:
        """find(): the number of the running call's site, with a note of its code if that is new."""
        body = self._program.function("find_raw" if is_raw else "find", 0, "noinline", "internal")
        context, layout = body.near(-tap.TEXT_AT), self._layout
        state = body.call(body.load(context, sites.AT_THREAD_STATE))
        with body.when(body.compare(state, "==", 0), likely=False):
            body.give(0)
        if is_raw and not layout.state_is_own:
            own = body.call(body.load(context, sites.AT_OWN_STATE))
            with body.when(body.compare(own, "!=", state)):
                body.give(0)
        interpreter = body.load(state, frames.INTERPRETER_AT)
        with body.when(body.compare(interpreter, "!=", body.load(context, sites.AT_INTERPRETER)), likely=False):
            body.give(0)
        frame = self._innermost(body, state)
        code = self._code(body, frame)
        slot, number = body.call_own(self._slot, code), body.room(1)
        body.store(number, 0, body.load(slot, 8))
        with body.when(body.compare(body.load(number), "==", 0), likely=False):
            body.store(number, 0, body.call_own(self._note, code, slot))
            with body.when(body.compare(body.load(number), "==", 0)):
                body.give(0)
        start = body.add(code, layout.instructions)
        unit = body.shift_right(body.subtract(body.load(frame, layout.frame_instruction), start), 1)
        with body.when(body.compare(unit, ">=", body.load(code, frames.ITEMS_AT)), likely=False):
            body.give(body.load(number))  # before its first instruction
        body.give(body.add(body.load(number), unit))
        return body

    def _innermost(self, body: Body, state: Value) -> Value:
        """The frame that runs; gives back 0 from the whole function where there is none."""
        layout, place, found = self._layout, body.room(1), state
        for step in layout.state_to_frame:
            found = body.load(found, step)
        body.store(place, 0, found)
        word, shift = layout.frame_owner & ~7, 8 * (layout.frame_owner & 7)
        with body.repeat():
            frame = body.load(place)
            with body.when(body.compare(frame, "==", 0), likely=False):
                body.give(0)
            owner = body.both(body.shift_right(body.load(frame, word), shift), 0xFF)
            body.leave_when(body.compare(owner, "==", frames.OWNED_BY_GENERATOR))
            other_than_c = "<" if layout.code_tags else "!="  # what is enough for older ones takes fewer instructions
            with body.when(body.compare(owner, other_than_c, frames.OWNED_BY_C), likely=True):
                code = self._code(body, frame)
                units = self._half_word(body, code, layout.first_traceable)
                first = body.add(body.add(code, layout.instructions), body.multiply(units, frames.UNIT_BYTES))
                body.leave_when(body.compare(body.load(frame, layout.frame_instruction), ">=", first))
            body.store(place, 0, body.load(frame, layout.frame_previous))
        return body.load(place)

    def _code(self, body: Body, frame: Value) -> Value:
        """The code that a frame runs."""
        code, tags = body.load(frame, self._layout.frame_code), self._layout.code_tags
        return body.both(code, (1 << 64) - 1 - tags) if tags else code

    def _make_slot(self) -> Body:
        """slot(code): the address of its slot in the table, or of the empty one where it goes."""
        body = self._program.function("slot", 1, "alwaysinline", "internal")
        (code,) = body.arguments
        table, index = body.load(body.near(-tap.TEXT_AT), sites.AT_TABLE), body.room(1)
        body.store(index, 0, body.shift_right(body.multiply(code, _HASH), 64 - sites.TABLE_BITS))
        with body.repeat():
            slot = body.add(table, body.shift_left(body.load(index), 4))
            key = body.load(slot)
            body.leave_when(body.either(body.compare(key, "==", code), body.compare(key, "==", 0)))
            body.store(index, 0, body.both(body.add(body.load(index), 1), (1 << sites.TABLE_BITS) - 1))
        body.give(body.add(table, body.shift_left(body.load(index), 4)))
        return body

    def _make_forget(self) -> Body:
        """forget(code): its slot stays, for the next code at that address, but has no number."""
        body = self._program.function("forget", 1, "noinline", "internal")
        body.store(body.call_own(self._slot, body.arguments[0]), 8, 0)
        body.give(0)
        return body

    def _make_note(self) -> Body:
        """note(code, slot): writes a note of the code and gives it numbers; gives the first, 0 if it can have none."""
        body = self._program.function("note", 2, "noinline", "internal")
        code, slot = body.arguments
        context = body.near(-tap.TEXT_AT)
        shared = body.load(context, tap.AT_SHARED)
        with body.when(body.compare(body.low_half(body.load(code)), "==", 0)):
            body.give(0)  # it is being taken apart, and its names may be gone
        units, number = body.load(code, frames.ITEMS_AT), body.load(context, sites.AT_NEXT_NUMBER)
        after = body.add(number, units)
        with body.when(body.compare(after, ">=", _NUMBERS)):
            body.give(0)
        filename, name, lines = (
            body.load(code, at) for at in (frames.FILENAME_AT, frames.QUALNAME_AT, frames.LINE_TABLE_AT)
        )
        line_bytes = body.load(lines, frames.ITEMS_AT)
        length = body.add(_whole_words(body, line_bytes), 8 * sites.NOTE_WORDS)
        for text in (filename, name):
            length = body.add(length, _whole_words(body, body.call_own(self._measure_text, text)))
        begin = body.load(shared, sites.AT_NOTES_HEAD)
        end = body.add(begin, length)
        self._wait_for_room(body, shared, length, end)
        with body.when(body.compare(body.load(slot), "==", 0)):
            codes = body.add(body.load(context, sites.AT_CODES), 1)
            with body.when(body.compare(codes, ">", _CODES_MOST)):
                body.give(0)
            body.store(context, sites.AT_CODES, codes)
        at = begin
        for word in (number, units, self._half_word(body, code, self._layout.first_line)):
            at = self._put_word(body, shared, at, word)
        at = body.call_own(self._copy_text, filename, at)
        at = body.call_own(self._copy_text, name, at)
        at = self._put_word(body, shared, at, body.either(body.shift_left(line_bytes, sites.WIDTH_BITS), 1))
        body.call_own(self._copy, body.add(lines, frames.BYTES_AT), line_bytes, at)
        body.publish(shared, sites.AT_NOTES_HEAD, end)
        body.store(context, sites.AT_NEXT_NUMBER, after)
        body.store(slot, 0, code)
        body.store(slot, 8, number)
        body.give(number)
        return body

    def _wait_for_room(self, body: Body, shared: Value, length: Value, end: Value) -> None:
        """Gives back 0 from the whole function where a note will never fit, or for want of a writer."""
        with body.when(body.compare(length, ">", tap.NOTES_BYTES)):
            body.give(0)
        room_end = body.add(body.load_shared(shared, sites.AT_NOTES_TAIL), tap.NOTES_BYTES)
        with body.when(body.compare(end, ">", room_end), likely=False):
            read = body.call_own(self._wait, sites.AT_NOTES_TAIL, body.subtract(end, tap.NOTES_BYTES))
            with body.when(body.compare(read, "==", 0)):
                body.give(0)

    def _make_measure_text(self) -> Body:
        """measure(str): its bytes."""
        body = self._program.function("measure_text", 1, "alwaysinline", "internal")
        (text,) = body.arguments
        width = _width(body, body.load(text, frames.STR_STATE_AT))
        body.give(body.multiply(body.load(text, frames.STR_LENGTH_AT), width))
        return body

    def _make_copy_text(self) -> Body:
        """copy_text(str, at): writes its bytes and their width, and the text; gives where the next goes.

        The text stands right behind the head of a str, but of a subclass's there is a pointer to it.
        """
        body = self._program.function("copy_text", 2, "noinline", "internal")
        text, at = body.arguments
        shared, length = body.load(body.near(-tap.TEXT_AT), tap.AT_SHARED), body.call_own(self._measure_text, text)
        state = body.load(text, frames.STR_STATE_AT)
        told = body.either(body.shift_left(length, sites.WIDTH_BITS), _width(body, state))
        at = self._put_word(body, shared, at, told)
        with body.when(body.compare(body.both(state, 1 << frames.STR_COMPACT_BIT), "==", 0), likely=False):
            body.give(body.call_own(self._copy, body.load(text, self._layout.other_text), length, at))
        is_ascii = body.both(state, 1 << frames.STR_ASCII_BIT)
        start = body.add(text, body.select(is_ascii, self._layout.ascii_text, self._layout.other_text))
        body.give(body.call_own(self._copy, start, length, at))
        return body

    def _make_copy(self) -> Body:
        """copy(address, bytes, at): into the notes, in whole words; gives where the next goes.

        What stands behind the bytes in their last word goes with them. It is of the same page, so it can be read.
        """
        body = self._program.function("copy", 3, "noinline", "internal")
        address, length, at = body.arguments
        shared = body.load(body.near(-tap.TEXT_AT), tap.AT_SHARED)
        whole, done = _whole_words(body, length), body.room(1)
        body.store(done, 0, 0)
        with body.repeat():
            so_far = body.load(done)
            body.leave_when(body.compare(so_far, "==", whole))
            self._put_word(body, shared, body.add(at, so_far), body.load(body.add(address, so_far)))
            body.store(done, 0, body.add(so_far, 8))
        body.give(body.add(at, whole))
        return body

    def _put_word(self, body: Body, shared: Value, at: Value, word: Value) -> Value:
        """One word of a note; gives where the next goes."""
        body.store(body.add(shared, body.both(at, tap.NOTES_BYTES - 1)), tap.NOTES_AT, word)
        return body.add(at, 8)

    def _half_word(self, body: Body, address: Value, at: int) -> Value:
        """A C int, not negative, by a load of the whole word it is in."""
        return body.low_half(body.shift_right(body.load(address, at & ~7), 8 * (at & 7)))


def _whole_words(body: Body, length: Value) -> Value:
    return body.both(body.add(length, 7), (1 << 64) - 8)


def _width(body: Body, state: Value) -> Value:
    """The bytes a character of a str in that state."""
    return body.both(body.shift_right(state, frames.STR_KIND_BIT), 7)
