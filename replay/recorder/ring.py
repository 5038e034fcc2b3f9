"""The shared memory of a recording as the writer sees it; `replay.recorder.tap` tells what is where."""

import mmap
import os
import sys

import numpy as np

from replay.recorder import tap
from replay.recorder.frames import LAYOUTS
from replay.recorder.hooks import has_steady_counter, make_hooks
from replay.recorder.notes import Notes
from replay.recorder.translation import count_published

COUNTS = has_steady_counter()
"""Whether hooks take the time from the processor."""
_RECORDS_AT_ONCE = 1 << 16
_SLOTS = 1 << tap.RING_BITS


class Ring:
    """Hands out records in the order in which they were claimed.

    `sites_every` is 1 to have the call sites of all calls, 0 of none, else of one call in so many bytes; `version` is
    that of the program's interpreter.
    """

    def __init__(self, file: int, sites_every: int = 0, version: tuple[int, ...] = sys.version_info[:2]) -> None:
        self.sites_every = sites_every
        self._layout = LAYOUTS[version] if sites_every else None
        self._memory = mmap.mmap(file, tap.SHARED_BYTES)
        self._words = np.frombuffer(self._memory, np.int64)
        records = self._words[tap.RING_AT // 8 : tap.NOTES_AT // 8]
        self.records = records.reshape(_SLOTS, tap.RECORD_BYTES // 8)
        self.notes = Notes(self._memory, self._words)
        self._put_code()
        for at in (tap.AT_ENDED, tap.AT_FLUSH, tap.AT_SEPARATE_HEAPS, *tap.AT_STATUS, *tap.COUNTS_AT):
            self._words[at // 8] = 0
        self.tail = self.head
        """Records that are done with, and may be overwritten."""
        self.advance(0)

    def _put_code(self) -> None:
        """Lays the hooks ready for the program; a program that has them keeps those."""
        text, offsets = make_hooks(COUNTS, self._layout)
        self._words[tap.AT_SITES_EVERY // 8] = self.sites_every
        self._memory[tap.CODE_AT : tap.CODE_AT + len(text)] = text
        for number, name in enumerate(tap.ENTRIES):
            self._words[tap.AT_OFFSETS // 8 + number] = offsets.get(name, 0)
        self._words[tap.AT_CODE_BYTES // 8] = len(text)

    @property
    def head(self) -> int:
        """Records that were claimed."""
        return int(self._words[tap.AT_HEAD // 8])

    @property
    def program(self) -> int:
        """The process that records; 0 before it began."""
        return int(self._words[tap.AT_PROGRAM // 8])

    def program_lives(self) -> bool:
        """Whether there is a process that may still be recording."""
        try:
            os.kill(self.program, 0)
        except OSError:
            return False
        return self.program > 0

    @property
    def ended(self) -> bool:
        """Whether the program said that nothing more will come."""
        return bool(self._words[tap.AT_ENDED // 8])

    def take_flush(self) -> bool:
        """Whether a flush was requested and all its records are taken; the request is then removed."""
        wanted = int(self._words[tap.AT_FLUSH // 8])
        if not wanted or wanted - 1 > self.tail:
            return False
        self._words[tap.AT_FLUSH // 8] = 0
        return True

    @property
    def deserted(self) -> bool:
        """Whether the program took the writer for dead, and recorded no more."""
        return bool(self._words[tap.AT_DESERTED // 8])

    @property
    def clean(self) -> bool:
        """Whether the program filled all pools before it began."""
        return bool(self._words[tap.AT_CLEAN // 8])

    @property
    def separate_heaps(self) -> bool:
        """Whether a subinterpreter had a pymalloc of its own."""
        return bool(self._words[tap.AT_SEPARATE_HEAPS // 8])

    @property
    def allocator(self) -> str:
        return self._text(tap.AT_ALLOCATOR, tap.NAME_BYTES)

    @property
    def libc(self) -> str:
        return self._text(tap.AT_LIBC, tap.NAME_BYTES)

    @property
    def malloc(self) -> str:
        """The file name of the library that `malloc` is in."""
        return self._text(tap.AT_MALLOC, tap.NAME_BYTES)

    def status(self, which: int) -> str:
        """`/proc/PID/status` when the recording began (0) or before finalisation (1); empty if it never was read."""
        return self._text(tap.AT_STATUS[which], tap.STATUS_BYTES)

    def _text(self, at: int, length: int) -> str:
        return self._memory[at : at + length].partition(b"\0")[0].decode(errors="replace")

    def published(self) -> int:
        """Records from the tail on that are complete; not more than are good to handle at once."""
        return int(count_published(self.records, self.tail, _RECORDS_AT_ONCE))

    def advance(self, records: int) -> None:
        self.tail += records
        self._words[tap.AT_TAIL // 8] = self.tail

    def counts(self) -> list[tuple[int, str]]:
        """Each time that pymalloc counted itself: the number of the record before which that was, and what it said."""
        told = [(int(self._words[at // 8]), self._memory[at + 8 : at + tap.COUNT_BYTES]) for at in tap.COUNTS_AT]
        return [(number - 1, text.partition(b"\0")[0].decode()) for number, text in told if number]

    def phases(self) -> tuple[str, ...]:
        """The names that marks point to."""
        names = []
        at = tap.NAMES_AT
        while length := int.from_bytes(self._memory[at : at + 4], "little"):
            names.append(self._memory[at + 4 : at + 3 + length].decode(errors="replace"))
            at += 3 + length
        return tuple(names)
