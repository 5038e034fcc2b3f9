"""The types of a recording, in the writer. `replay.recorder.object_types` defines their numbers."""

import numpy as np

from replay.jit.arrays import with_room
from replay.recorder import object_types
from replay.recorder.hook_kinds import TRACKED
from replay.recorder.notes import Notes, TypeNote
from replay.trace import NO_TYPE, ObjectType

BYTES_SHIFT, BYTES_MOST = 47, 0xFFF0
"""In an unknown pointer: the size of its block, a multiple of 16 bytes."""
POINTER = 1 << 31
"""Added to a number in a batch: it is not that of a type, but of an unknown pointer, counted from 0."""
_NAMELESS = ObjectType("", "", False)


class TypeTable:
    """The table of types: one entry for each type, in the order of their notes, and for each unknown pointer."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._entries: list[ObjectType] = []
        self._by_address: dict[int, tuple[ObjectType, TypeNote]] = {}
        """Static types. At the address of another type can have been something else before."""
        self._pointers: dict[int, int] = {}
        """Entries of unknown pointers."""
        self._places = np.full(1 << 12, NO_TYPE, np.uint32)
        """Entries by number; number 0 is no type."""

    @property
    def types(self) -> tuple[ObjectType, ...]:
        """All entries. An unknown pointer has the name of the static type that was found there later, if any."""
        self._read()
        entries = list(self._entries)
        for pointer, entry in self._pointers.items():
            entries[entry] = self._static_type(pointer)
        return tuple(entries)

    def _static_type(self, pointer: int) -> ObjectType:
        """Returns the type that an unknown pointer is the address of, if its objects fit the block."""
        address = pointer & (1 << BYTES_SHIFT) - 1
        type_, note = self._by_address.get(address & -8, (_NAMELESS, None))
        if note is None:
            return _NAMELESS
        headers = address & object_types.BEHIND_HEADER
        return type_ if note.headers == headers and note.fits(pointer >> BYTES_SHIFT) else _NAMELESS

    def number(self, column: np.ndarray, pointers: np.ndarray) -> None:
        """Replaces the hooks' numbers in `column` by indexes of `types`, in place. `pointers` are those of the batch's
        numbers with POINTER."""
        self._read()
        unknown = np.flatnonzero(column >= POINTER)
        numbers = column[unknown] - np.uint32(POINTER)
        column[unknown] = 0
        column[:] = self._places[np.minimum(column, self._places.shape[0] - 1)]
        if unknown.size:
            distinct, indexes = np.unique(numbers, return_inverse=True)
            entries = np.array([self._pointer(int(pointers[number])) for number in distinct], np.uint32)
            column[unknown] = entries[indexes]

    def answers(self, answers: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the types (uint32) in answers of the program, and whether the collector tracks the objects.

        `sizes`: of the blocks. A type that does not fit a block is that of another one behind it.
        """
        self._read()
        least_bytes = answers >> object_types.LEAST_SHIFT & object_types.LEAST_MOST
        numbers = np.where((answers < 0) & (sizes >= least_bytes), answers & 0xFFFFFFFF, 0)  # KNOWN is the sign
        types = self._places[np.minimum(numbers, self._places.shape[0] - 1)]
        for row in np.flatnonzero(answers > 0):
            rounded = min(int(sizes[row]), BYTES_MOST) + 15 & -16
            types[row] = self._pointer(int(answers[row]) | rounded << BYTES_SHIFT)
        return types, (answers & TRACKED) != 0

    def _pointer(self, pointer: int) -> int:
        if pointer not in self._pointers:
            self._pointers[pointer] = len(self._entries)
            self._entries.append(_NAMELESS)
        return self._pointers[pointer]

    def _read(self) -> None:
        self._notes.read()
        for note in self._notes.types:
            type_ = ObjectType(note.module, note.name, note.collected)
            if note.is_static:
                self._by_address[note.address] = type_, note
            self._places = with_room(self._places, note.number + 1, fill=NO_TYPE)
            entry = int(self._places[note.number])
            if entry == NO_TYPE:
                self._places[note.number] = len(self._entries)
                self._entries.append(type_)
            else:
                self._entries[entry] = type_
        self._notes.types.clear()
