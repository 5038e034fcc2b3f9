"""The shared memory of a recording in the writer. `replay.recorder.tap` defines its layout."""

import mmap
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from replay.recorder import tap
from replay.recorder.hook_code import find_hooks
from replay.recorder.hook_kinds import Extras, has_steady_counter
from replay.recorder.notes import Notes
from replay.recorder.object_types import COLLECTOR_WORDS
from replay.recorder.translation import count_published

COUNTS = has_steady_counter()
"""Whether hooks read the time from the processor's counter."""
_RECORDS_AT_ONCE = 1 << 16
_SLOTS = 1 << tap.RING_BITS
_ANSWER_SECONDS = 0.0002


class Ring:
    """The ring of records, in the order in which they were claimed, and the header of the shared memory.

    `sites_every`: 1 for the call sites of all calls, 0 for none, else the average bytes between calls with a site.
    `types`: whether types of objects are recorded. `version`: that of the program's interpreter.
    """

    def __init__(
        self, file: int, sites_every: int = 0, types: bool = False, version: tuple[int, ...] = sys.version_info[:2]
    ) -> None:
        self.sites_every, self.types = sites_every, types
        self._extras = Extras(version, sites_every > 0, types) if sites_every or types else None
        self._memory = mmap.mmap(file, tap.SHARED_BYTES)
        self._words = np.frombuffer(self._memory, np.int64)
        records = self._words[tap.RING_AT // 8 : tap.NOTES_AT // 8]
        self.records = records.reshape(_SLOTS, tap.RECORD_BYTES // 8)
        self.notes = Notes(self._memory, self._words)
        self._put_code()
        for at in (
            *(tap.AT_ENDED, tap.AT_FLUSH, tap.AT_SEPARATE_HEAPS, *tap.AT_STATUS, *tap.COUNTS_AT),
            *(tap.AT_TYPES_WANTED, tap.AT_TYPES_ASKED, tap.AT_TYPES_ANSWERED, tap.COLLECTOR_AT),
        ):
            self._words[at // 8] = 0
        self.tail = self.head
        """Number of records that the writer has processed; their place can be overwritten."""
        self.advance(0)

    def _put_code(self) -> None:
        """Writes the hooks into the shared memory. A program that already copied them does not read them again."""
        text, offsets = find_hooks(COUNTS, self._extras)
        self._words[tap.AT_SITES_EVERY // 8] = self.sites_every
        self._memory[tap.CODE_AT : tap.CODE_AT + len(text)] = text
        for number, name in enumerate(tap.ENTRIES):
            self._words[tap.AT_OFFSETS // 8 + number] = offsets.get(name, 0)
        self._words[tap.AT_CODE_BYTES // 8] = len(text)

    @property
    def head(self) -> int:
        """Number of records that were claimed."""
        return int(self._words[tap.AT_HEAD // 8])

    @property
    def program(self) -> int:
        """ID of the recorded process; 0 before the recording began."""
        return int(self._words[tap.AT_PROGRAM // 8])

    def program_exists(self) -> bool:
        """Whether the recorded process still exists."""
        try:
            os.kill(self.program, 0)
        except OSError:
            return False
        return self.program > 0

    @property
    def ended(self) -> bool:
        """Whether the program ended the recording."""
        return bool(self._words[tap.AT_ENDED // 8])

    def take_flush(self) -> bool:
        """Whether a flush was requested and all its records are processed. Removes the request in this case."""
        requested = int(self._words[tap.AT_FLUSH // 8])
        if not requested or requested - 1 > self.tail:
            return False
        self._words[tap.AT_FLUSH // 8] = 0
        return True

    @property
    def types_wanted(self) -> bool:
        """Whether the program waits for questions about live blocks, and all records before them are processed."""
        wanted = int(self._words[tap.AT_TYPES_WANTED // 8])
        return wanted > 0 and wanted - 1 <= self.tail

    def ask_types(self, addresses: np.ndarray, is_gone: Callable[[], bool]) -> np.ndarray:
        """Returns the program's answers about these blocks (int64), fewer if it is gone. Ends its wait.

        `replay.recorder.type_hooks` defines an answer.
        """
        most, words = tap.TYPES_BYTES // 8, self._words
        place = words[tap.TYPES_AT // 8 :][:most]
        answers: list[np.ndarray] = []
        for rounds, start in enumerate([*range(0, addresses.shape[0], most), addresses.shape[0]], 1):
            asked = addresses[start : start + most]
            place[: asked.shape[0]] = asked
            words[tap.AT_TYPES_COUNT // 8] = asked.shape[0]
            words[tap.AT_TYPES_ASKED // 8] = rounds
            while asked.shape[0] and words[tap.AT_TYPES_ANSWERED // 8] < rounds:
                if is_gone():
                    return np.concatenate([*answers, asked[:0]])
                time.sleep(_ANSWER_SECONDS)
            answers.append(place[: asked.shape[0]].copy())
        words[tap.AT_TYPES_WANTED // 8] = 0
        return np.concatenate(answers)

    @property
    def collector(self) -> list[int]:
        """The state of the garbage collector at the start: see `replay.recorder.object_types`."""
        return self._words[tap.COLLECTOR_AT // 8 :][:COLLECTOR_WORDS].tolist()

    @property
    def deserted(self) -> bool:
        """Whether the program found the writer dead and stopped recording."""
        return bool(self._words[tap.AT_DESERTED // 8])

    @property
    def clean(self) -> bool:
        """Whether the program filled all pools before the recording."""
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
        """File name of the library that contains `malloc`."""
        return self._text(tap.AT_MALLOC, tap.NAME_BYTES)

    def status(self, which: int) -> str:
        """Returns `/proc/PID/status` at the start of the recording (0) or before finalization (1); empty if unread."""
        return self._text(tap.AT_STATUS[which], tap.STATUS_BYTES)

    def _text(self, at: int, length: int) -> str:
        return self._memory[at : at + length].partition(b"\0")[0].decode(errors="replace")

    def published(self) -> int:
        """Returns the number of complete records after the tail, at most as many as are processed in one piece."""
        return int(count_published(self.records, self.tail, _RECORDS_AT_ONCE))

    def advance(self, records: int) -> None:
        self.tail += records
        self._words[tap.AT_TAIL // 8] = self.tail

    def counts(self) -> list[tuple[int, str]]:
        """Returns pymalloc's statistics: the number of the record that follows, and the text."""
        texts = [(int(self._words[at // 8]), self._memory[at + 8 : at + tap.COUNT_BYTES]) for at in tap.COUNTS_AT]
        return [(number - 1, text.partition(b"\0")[0].decode()) for number, text in texts if number]

    def phases(self) -> tuple[str, ...]:
        """Returns the names of marks, by their number."""
        names = []
        at = tap.NAMES_AT
        while length := int.from_bytes(self._memory[at : at + 4], "little"):
            names.append(self._memory[at + 4 : at + 3 + length].decode(errors="replace"))
            at += 3 + length
        return tuple(names)
