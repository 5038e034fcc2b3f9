"""The writer's loop: writes the records of the ring into the file while the program runs.

The program waits for the writer only if the ring is full. Records are in shared memory at once, so no record is lost if
the program crashes.
"""

import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from replay.recorder.counting import Counting
from replay.recorder.growing_file import GrowingFile
from replay.recorder.notes import SiteTable
from replay.recorder.part import new_part
from replay.recorder.ring import COUNTS, Ring
from replay.recorder.runtime import Observer
from replay.recorder.translation import Clock, Translator
from replay.recorder.type_table import TypeTable
from replay.sources.parquet import GROUP_ROWS
from replay.support.atomic_files import exists_already, new_target, publish
from replay.support.errors import OutputError, cannot_be_written
from replay.trace import CLEAN_START, TEARDOWN_MARK, Collector, Events, Metadata, Op, Provenance
from replay.trace.block_ops import allocates
from replay.trace.columns import NO_TYPE

BATCH_SECONDS = 5.0
"""Maximum time until a record is in the file, where it is safe even if the writer is killed."""
_IDLE_SECONDS = 0.001
"""Interval at which the writer polls for records. Hooks make no system calls, so they cannot wake it."""
_STRAGGLER_SECONDS = 0.2
"""Maximum wait for a thread that has claimed a record but not completed it, after the end of the recording."""


@dataclass(frozen=True)
class Written:
    """The result of a recording."""

    rows: int
    span_ns: int
    live_blocks: int
    file_bytes: int
    foreign_frees: int
    trouble: str = ""
    """Why the file does not contain everything that was recorded; empty if it does."""


class Writer:
    """Writes the recording of `command` to the new file `path`. `replay.recorder.part` names it until it is complete.

    The first word of `command` is the interpreter; the metadata have it without its folder. `interpreter`: its name and
    version, if it is not this one. Blocks of the threads `excluded` are left out.
    """

    def __init__(
        self,
        ring: Ring,
        path: Path,
        command: Sequence[str],
        *,
        addresses: bool,
        force: bool,
        interpreter: str = "",
        excluded: Iterable[int] = (),
    ) -> None:
        self._ring, self._path = ring, new_target(path, force=force)
        self._sites = SiteTable(ring.notes) if ring.sites_every else None
        self._types = TypeTable(ring.notes) if ring.types else None
        self._origin = Provenance(
            interpreter=interpreter or f"{sys.implementation.name} {platform.python_version()}",
            platform=platform.platform(),
            command=shlex.join([Path(command[0]).name, *command[1:]]),
            sites=_sites_of(ring.sites_every),
        )
        self._name, self._force = path, force
        try:
            self._part, self._open_part = new_part(self._path, force=force, name=path)
            try:
                self._file = GrowingFile(self._open_part, addresses, ring.sites_every > 0, ring.types)
            except OSError:
                self.discard()
                raise
        except OSError as error:
            raise cannot_be_written(path, error) from error
        self._translator = Translator(Clock(COUNTS), GROUP_ROWS, ring.sites_every > 0, ring.types, excluded)
        self._rows = 0
        """Number of rows in the file."""
        self._first_ns: int | None = None
        self._last_ns = 0
        self._live_at_end: int | None = None
        """Live blocks at the end of the program, if the teardown of the interpreter follows."""
        self._live_types: list[tuple[int, np.ndarray]] = []
        """Rows of live objects in the next batch: the first row, and the types of all."""
        self._trouble = ""
        self._counting = Counting(ring)
        self._observer = Observer(ring)
        self._rehearse()

    def _rehearse(self) -> None:
        """Does everything once without records, so that kernels are loaded or compiled before the program starts."""
        self._translator.translate(self._ring.records, self._ring.published(), 0)
        if self._sites:
            self._sites.number(np.zeros(1, np.uint32))
        self._file.rehearse()

    def run(self, has_ended: Callable[[], bool], flushed: Callable[[str], None] | None = None) -> None:
        """Writes until `has_ended` returns True and no records are left. It is called only if no record is complete.

        `flushed` is called after each requested flush, with the reason if the file cannot be written, else ''.
        """
        written_s = time.monotonic()
        while True:
            self._ring.notes.read()
            self._observer.sample()
            if records := self._ring.published():
                self._translate(records)
            elif has_ended():
                break
            else:
                time.sleep(_IDLE_SECONDS)
            if self._translator.full or time.monotonic() - written_s > BATCH_SECONDS:
                self._append()
                written_s = time.monotonic()
            if self._ring.types_wanted:
                self._append_types(has_ended)
            if flushed and self._ring.take_flush():
                self._append()
                flushed(self._trouble)
        self._translate_stragglers()
        if not self._trouble:
            self._counting.records_until(0, self._rows + self._translator.row)
        self._append()

    def finish(self) -> Written:
        """Completes the file and gives it its name."""
        with self._open_part:  # locked until it has its name
            rows = self._file.finish(self._metadata())
            try:
                publish(self._part, self._path, force=self._force)
            except FileExistsError:
                raise OutputError(f"{exists_already(self._name)}; the recording is complete in {self._part}") from None
        if not self._trouble and self._ring.deserted:
            self._trouble = "the program waited too long for the writer and continued unrecorded"
        return Written(
            rows=rows,
            span_ns=self._last_ns - (self._first_ns or 0),
            live_blocks=self._translator.live_blocks if self._live_at_end is None else self._live_at_end,
            file_bytes=self._path.stat().st_size,
            foreign_frees=self._translator.foreign_frees,
            trouble=self._trouble,
        )

    def discard(self) -> None:
        """Removes the file of a recording that did not begin."""
        with self._open_part:
            self._part.unlink()

    def _translate(self, records: int) -> None:
        """Translates `records` records of the ring; discards them if the file can no longer be written."""
        if not self._trouble:
            records = self._counting.records_until(records, self._rows + self._translator.row)
            records = self._translator.translate(self._ring.records, self._ring.tail, records)
        self._ring.advance(records)

    def _translate_stragglers(self) -> None:
        """Waits briefly for threads that are completing a record. Records of dead threads are left out."""
        deadline_s = time.monotonic() + _STRAGGLER_SECONDS
        while self._ring.tail < self._ring.head:
            if self._translator.full:
                self._append()
            if records := self._ring.published():
                self._translate(records)
            elif self._ring.program_exists() and time.monotonic() < deadline_s:
                time.sleep(_IDLE_SECONDS)
            else:
                self._ring.advance(1)

    def _append_types(self, has_ended: Callable[[], bool]) -> None:
        """Asks the program for the types of all live objects, and writes a row for each object."""
        number, address, size = self._translator.live_objects()
        answers = self._ring.ask_types(address, has_ended)
        if self._types is None or self._trouble:
            return
        type_, tracked = self._types.answers(answers, size[: answers.shape[0]])
        is_object = np.flatnonzero(type_ != NO_TYPE)
        number, address, type_, tracked = (each[is_object] for each in (number, address, type_, tracked))
        while number.size:
            if self._translator.full:
                self._append()
            rows = self._translator.put_live(number, address, tracked)
            self._live_types.append((rows.start, type_[: rows.stop - rows.start]))
            number, address, type_, tracked = (
                each[rows.stop - rows.start :] for each in (number, address, type_, tracked)
            )

    def _append(self) -> None:
        if self._translator.row == 0:
            return
        batch = self._translator.batch()
        self._note_end(batch)
        if self._sites and batch.site is not None:
            self._sites.number(batch.site)
        if self._types and batch.type is not None:
            self._types.number(batch.type, self._translator.pointers)
            for start, types in self._live_types:
                batch.type[start : start + types.shape[0]] = types
            self._live_types.clear()
        if self._first_ns is None:
            self._first_ns = int(batch.time_ns[0])
        try:
            self._file.append(batch, self._metadata())
            self._last_ns = int(batch.time_ns[-1])
            self._rows += batch.rows
        except OSError as error:
            self._trouble = f"{self._path}: can no longer be written: {error.strerror or error}"

    def _note_end(self, batch: Events) -> None:
        """Finds the mark at the end of the program in the last batch of the translator, and counts live blocks."""
        phases = self._ring.phases()
        if TEARDOWN_MARK not in phases:
            return
        ends = np.flatnonzero((batch.op == Op.MARK) & (batch.size == phases.index(TEARDOWN_MARK)))
        if ends.size:
            later = batch.op[ends[-1] :]
            allocated, freed = np.count_nonzero(allocates(later)), np.count_nonzero(later == Op.FREE)
            self._live_at_end = self._translator.live_blocks - int(allocated) + int(freed)

    def _metadata(self) -> Metadata:
        excluded_calls = self._translator.excluded_calls
        origin = replace(
            self._origin,
            start=CLEAN_START if self._ring.clean else "as it was",
            older_frees=self._translator.foreign_frees,
            older_reallocs=self._translator.foreign_reallocs,
            unseen_frees=self._translator.unseen_frees,
            left_out_calls=excluded_calls or None,
        )
        sites = tuple(self._sites.sites) if self._sites else ()
        # pymalloc's statistics include the excluded threads.
        counted = () if excluded_calls else self._counting.counts()
        metadata = Metadata(origin, sites, self._ring.phases(), counts=counted, runtime=self._observer.runtime())
        if self._types is None:
            return metadata
        return replace(metadata, types=self._types.types, collector=_collector_of(self._ring.collector))


def _collector_of(words: list[int]) -> Collector | None:
    """Returns the collector's state from its words in the shared memory; None before the recording began."""
    first, second, third, enabled, *counts, old_objects, full_collections, frozen, pages = words
    if not any(words):
        return None
    return Collector(
        (first, second, third), bool(enabled), (counts[0], counts[1], counts[2]),
        old_objects, full_collections, frozen, pages,
    )  # fmt: skip


def _sites_of(every_bytes: int) -> str | None:
    """Returns for which calls sites are recorded, as text for the metadata; None for no calls."""
    if not every_bytes:
        return None
    return "every call" if every_bytes == 1 else f"one call in {every_bytes:,} bytes"
