"""The part of the hooks that writes notes for the writer, and looks up addresses in a hash table.

`replay.recorder.sites` and `replay.recorder.object_types` define the notes. Only threads with the GIL write them.
"""

from replay.recorder import frames, sites, tap
from replay.recorder.frames import Layout
from replay.recorder.machine_code import Body, Program, Value

_HASH = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: Fibonacci hashing uses the highest bits of the product."""


def make_slot(program: Program, name: str, at_table: int, table_bits: int) -> Body:
    """name(key): the address of the key's slot in the table, or of the empty slot for it.

    The context has the table's address at `at_table`. A slot is two words: the key, which is an address, and a value.
    """
    body = program.function(name, 1, "alwaysinline", "internal")
    (key,) = body.arguments
    table, index = body.load(body.code_relative(-tap.TEXT_AT), at_table), body.stack_words(1)
    body.store(index, 0, body.shift_right(body.multiply(key, _HASH), 64 - table_bits))
    with body.loop():
        slot = body.add(table, body.shift_left(body.load(index), 4))
        found = body.load(slot)
        body.break_if(body.bit_or(body.compare(found, "==", key), body.compare(found, "==", 0)))
        body.store(index, 0, body.bit_and(body.add(body.load(index), 1), (1 << table_bits) - 1))
    body.return_(body.add(table, body.shift_left(body.load(index), 4)))
    return body


class NoteHooks:
    """Adds the functions for notes to a program of hooks. `wait` is the function that waits for the writer."""

    def __init__(self, program: Program, wait: Body, layout: Layout) -> None:
        self._program, self._wait, self._layout = program, wait, layout
        self._copy = self._make_copy()
        self._measure_text = self._make_measure_text()
        self._copy_text = self._make_copy_text()

    def copy(self, body: Body, address: Value, length: Value, at: Value) -> Value:
        """Copies bytes into the notes as whole words; returns the position after them."""
        return body.call_own(self._copy, address, length, at)

    def measure(self, body: Body, text: Value) -> Value:
        """Returns the length of a str in bytes."""
        return body.call_own(self._measure_text, text)

    def copy_text(self, body: Body, text: Value, at: Value) -> Value:
        """Writes length, width and characters of a str; returns the position after them."""
        return body.call_own(self._copy_text, text, at)

    def put_word(self, body: Body, shared: Value, at: Value, word: Value) -> Value:
        """Writes one word of a note; returns the position after it."""
        body.store(body.add(shared, body.bit_and(at, tap.NOTES_BYTES - 1)), tap.NOTES_AT, word)
        return body.add(at, 8)

    def wait_for_room(self, body: Body, shared: Value, length: Value, end: Value) -> None:
        """Waits for room. The generated function returns 0 if a note is too long or the writer has died."""
        with body.if_(body.compare(length, ">", tap.NOTES_BYTES)):
            body.return_(0)
        room_end = body.add(body.load_shared(shared, sites.AT_NOTES_TAIL), tap.NOTES_BYTES)
        with body.if_(body.compare(end, ">", room_end), likely=False):
            read = body.call_own(self._wait, sites.AT_NOTES_TAIL, body.subtract(end, tap.NOTES_BYTES))
            with body.if_(body.compare(read, "==", 0)):
                body.return_(0)

    def _make_measure_text(self) -> Body:
        """measure_text(str): the length in bytes."""
        body = self._program.function("measure_text", 1, "alwaysinline", "internal")
        (text,) = body.arguments
        width = _width(body, body.load(text, frames.STR_STATE_AT))
        body.return_(body.multiply(body.load(text, frames.STR_LENGTH_AT), width))
        return body

    def _make_copy_text(self) -> Body:
        """copy_text(str, at): writes length, width and characters; returns the position after them.

        The characters follow the header of a str. An instance of a subclass has a pointer to them.
        """
        body = self._program.function("copy_text", 2, "noinline", "internal")
        text, at = body.arguments
        shared, length = (
            body.load(body.code_relative(-tap.TEXT_AT), tap.AT_SHARED),
            body.call_own(self._measure_text, text),
        )
        state = body.load(text, frames.STR_STATE_AT)
        length_and_width = body.bit_or(body.shift_left(length, sites.WIDTH_BITS), _width(body, state))
        at = self.put_word(body, shared, at, length_and_width)
        with body.if_(body.compare(body.bit_and(state, 1 << frames.STR_COMPACT_BIT), "==", 0), likely=False):
            body.return_(body.call_own(self._copy, body.load(text, self._layout.other_text), length, at))
        is_ascii = body.bit_and(state, 1 << frames.STR_ASCII_BIT)
        start = body.add(text, body.select(is_ascii, self._layout.ascii_text, self._layout.other_text))
        body.return_(body.call_own(self._copy, start, length, at))
        return body

    def _make_copy(self) -> Body:
        """copy(address, bytes, at): copies whole words into the notes; returns the position after them.

        The last word can contain bytes after the end. They are on the same page, so they can be read.
        """
        body = self._program.function("copy", 3, "noinline", "internal")
        address, length, at = body.arguments
        shared = body.load(body.code_relative(-tap.TEXT_AT), tap.AT_SHARED)
        total, done = whole_words(body, length), body.stack_words(1)
        body.store(done, 0, 0)
        with body.loop():
            copied = body.load(done)
            body.break_if(body.compare(copied, "==", total))
            self.put_word(body, shared, body.add(at, copied), body.load(body.add(address, copied)))
            body.store(done, 0, body.add(copied, 8))
        body.return_(body.add(at, total))
        return body


def whole_words(body: Body, length: Value) -> Value:
    """Returns a length in bytes, rounded up to words."""
    return body.bit_and(body.add(length, 7), (1 << 64) - 8)


def _width(body: Body, state: Value) -> Value:
    """Returns the bytes for each character of a str with this state."""
    return body.bit_and(body.shift_right(state, frames.STR_KIND_BIT), 7)
