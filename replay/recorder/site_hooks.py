"""The part of the hooks that finds call sites. `replay.recorder.sites` defines the numbers of call sites.

Hooks of mem and obj run with the GIL, which protects the table of codes and the notes. A raw hook checks the current
thread state; if its thread does not hold the GIL, the call has no site. The running frame is the one that
`sys._getframe` returns: the innermost complete frame that C does not own. Calls of other interpreters have no site,
because these can have a GIL of their own.
"""

from replay.recorder import frames, sites, tap
from replay.recorder.frames import Layout
from replay.recorder.machine_code import Body, Program, Value
from replay.recorder.note_hooks import NoteHooks, make_slot, whole_words

_CODES_MOST = 3 << (sites.TABLE_BITS - 2)
"""Maximum number of addresses in the table. Codes at further addresses get no numbers."""
_NUMBERS = 1 << 2 * tap.SITE_BITS


class SiteHooks:
    """Adds the functions for call sites to a program of hooks."""

    def __init__(self, program: Program, notes: NoteHooks, layout: Layout) -> None:
        self._program, self._layout, self._notes = program, layout, notes
        self._slot = make_slot(program, "slot", sites.AT_TABLE, sites.TABLE_BITS)
        self._note = self._make_note()
        self._find, self._find_raw = self._make_find(is_raw=False), self._make_find(is_raw=True)
        self._of_bytes, self._of_raw_bytes = self._make_of_bytes(), self._make_of_raw_bytes()
        self._forget = self._make_forget()
        trial = program.function("find_site", 0)
        trial.return_(trial.call_own(self._find))

    def site(self, body: Body, domain: int, size: Value) -> Value:
        """Returns the number of the call's site; 0 if the call is not sampled or its site is unknown."""
        if domain == tap.RAW:
            return body.call_own(self._of_raw_bytes, size)
        return body.call_own(self._of_bytes, size, sites.AT_BYTES + 8 * domain)

    def before_free(self, body: Body, context: Value, block: Value) -> None:
        """Removes the numbers of a code object that is freed. Its type is still intact at that moment."""
        is_code = body.compare(body.load(block, frames.TYPE_AT), "==", body.load(context, sites.AT_CODE_TYPE))
        with body.if_(is_code, likely=False):
            body.call_own(self._forget, block)

    def _make_of_bytes(self) -> Body:
        """site_of_bytes(size, at): the site of a sampled call, else 0. `at` has the bytes until the next sample."""
        body = self._program.function("site_of_bytes", 2, "alwaysinline", "internal")
        size, at = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        place = body.add(context, at)
        remaining = body.load(place)
        with body.if_(body.compare(size, "<", remaining)):
            body.store(place, 0, body.subtract(remaining, size))
            body.return_(0)
        every = body.load(context, sites.AT_EVERY)
        with body.if_(body.compare(every, "!=", 1)):
            beyond = body.remainder(body.subtract(size, remaining), every)
            body.store(place, 0, body.subtract(every, beyond))
        body.return_(body.call_own(self._find))
        return body

    def _make_of_raw_bytes(self) -> Body:
        """site_of_raw_bytes(size): the same for raw, whose threads count concurrently."""
        body = self._program.function("site_of_raw_bytes", 1, "noinline", "internal")
        (size,) = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        every = body.load(context, sites.AT_EVERY)
        with body.if_(body.compare(every, "!=", 1)):
            beyond = body.remainder(body.claim(context, sites.AT_BYTES + 8 * tap.RAW, size), every)
            with body.if_(body.compare(body.add(beyond, size), "<", every)):
                body.return_(0)
        body.return_(body.call_own(self._find_raw))
        return body

    def _make_find(self, *, is_raw: bool) -> Body:
        """find(): the number of the running call's site. Writes a note if its code is new."""
        body = self._program.function("find_raw" if is_raw else "find", 0, "noinline", "internal")
        context, layout = body.code_relative(-tap.TEXT_AT), self._layout
        state = body.call(body.load(context, sites.AT_THREAD_STATE))
        with body.if_(body.compare(state, "==", 0), likely=False):
            body.return_(0)
        if is_raw and not layout.state_is_own:
            own = body.call(body.load(context, sites.AT_OWN_STATE))
            with body.if_(body.compare(own, "!=", state)):
                body.return_(0)
        interpreter = body.load(state, frames.INTERPRETER_AT)
        with body.if_(body.compare(interpreter, "!=", body.load(context, sites.AT_INTERPRETER)), likely=False):
            body.return_(0)
        frame = self._innermost(body, state)
        code = self._code(body, frame)
        slot, number = body.call_own(self._slot, code), body.stack_words(1)
        body.store(number, 0, body.load(slot, 8))
        with body.if_(body.compare(body.load(number), "==", 0), likely=False):
            body.store(number, 0, body.call_own(self._note, code, slot))
            with body.if_(body.compare(body.load(number), "==", 0)):
                body.return_(0)
        start = body.add(code, layout.instructions)
        unit = body.shift_right(body.subtract(body.load(frame, layout.frame_instruction), start), 1)
        with body.if_(body.compare(unit, ">=", body.load(code, frames.ITEMS_AT)), likely=False):
            body.return_(body.load(number))  # before its first instruction
        body.return_(body.add(body.load(number), unit))
        return body

    def _innermost(self, body: Body, state: Value) -> Value:
        """Returns the innermost complete frame. Without one, the generated function returns 0."""
        layout, place, found = self._layout, body.stack_words(1), state
        for step in layout.state_to_frame:
            found = body.load(found, step)
        body.store(place, 0, found)
        word, shift = layout.frame_owner & ~7, 8 * (layout.frame_owner & 7)
        with body.loop():
            frame = body.load(place)
            with body.if_(body.compare(frame, "==", 0), likely=False):
                body.return_(0)
            owner = body.bit_and(body.shift_right(body.load(frame, word), shift), 0xFF)
            body.break_if(body.compare(owner, "==", frames.OWNED_BY_GENERATOR))
            other_than_c = "<" if layout.code_tags else "!="  # older versions need fewer instructions
            with body.if_(body.compare(owner, other_than_c, frames.OWNED_BY_C), likely=True):
                code = self._code(body, frame)
                units = self._half_word(body, code, layout.first_traceable)
                first = body.add(body.add(code, layout.instructions), body.multiply(units, frames.UNIT_BYTES))
                body.break_if(body.compare(body.load(frame, layout.frame_instruction), ">=", first))
            body.store(place, 0, body.load(frame, layout.frame_previous))
        return body.load(place)

    def _code(self, body: Body, frame: Value) -> Value:
        """Returns the code object of a frame."""
        code, tags = body.load(frame, self._layout.frame_code), self._layout.code_tags
        return body.bit_and(code, (1 << 64) - 1 - tags) if tags else code

    def _make_forget(self) -> Body:
        """forget(code): clears the number of the code. The slot stays for the next code at that address."""
        body = self._program.function("forget", 1, "noinline", "internal")
        body.store(body.call_own(self._slot, body.arguments[0]), 8, 0)
        body.return_(0)
        return body

    def _make_note(self) -> Body:
        """note(code, slot): writes a note and assigns numbers to the code; returns the first, or 0 if none is free."""
        body = self._program.function("note", 2, "noinline", "internal")
        code, slot = body.arguments
        context = body.code_relative(-tap.TEXT_AT)
        shared = body.load(context, tap.AT_SHARED)
        with body.if_(body.compare(body.low_half(body.load(code)), "==", 0)):
            body.return_(0)  # the code is being deallocated, and its names may be freed already
        units, number = body.load(code, frames.ITEMS_AT), body.load(context, sites.AT_NEXT_NUMBER)
        after = body.add(number, units)
        with body.if_(body.compare(after, ">=", _NUMBERS)):
            body.return_(0)
        filename, name, lines = (
            body.load(code, at) for at in (frames.FILENAME_AT, frames.QUALNAME_AT, frames.LINE_TABLE_AT)
        )
        line_bytes = body.load(lines, frames.ITEMS_AT)
        length = body.add(whole_words(body, line_bytes), 8 * sites.NOTE_WORDS)
        for text in (filename, name):
            length = body.add(length, whole_words(body, self._notes.measure(body, text)))
        begin = body.load(shared, sites.AT_NOTES_HEAD)
        end = body.add(begin, length)
        self._notes.wait_for_room(body, shared, length, end)
        with body.if_(body.compare(body.load(slot), "==", 0)):
            codes = body.add(body.load(context, sites.AT_CODES), 1)
            with body.if_(body.compare(codes, ">", _CODES_MOST)):
                body.return_(0)
            body.store(context, sites.AT_CODES, codes)
        at = begin
        for word in (number, units, self._half_word(body, code, self._layout.first_line)):
            at = self._notes.put_word(body, shared, at, word)
        at = self._notes.copy_text(body, filename, at)
        at = self._notes.copy_text(body, name, at)
        at = self._notes.put_word(body, shared, at, body.bit_or(body.shift_left(line_bytes, sites.WIDTH_BITS), 1))
        self._notes.copy(body, body.add(lines, frames.BYTES_AT), line_bytes, at)
        body.publish(shared, sites.AT_NOTES_HEAD, end)
        body.store(context, sites.AT_NEXT_NUMBER, after)
        body.store(slot, 0, code)
        body.store(slot, 8, number)
        body.return_(number)
        return body

    def _half_word(self, body: Body, address: Value, at: int) -> Value:
        """Loads a C int that is not negative, with one load of the word that contains it."""
        return body.low_half(body.shift_right(body.load(address, at & ~7), 8 * (at & 7)))
