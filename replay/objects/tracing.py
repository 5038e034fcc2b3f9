"""The trace of an object program.

Each step of the machine, an instruction or the end of one reference, takes STEP_NS. In programs with threads, calls of
allocators take time too. Only the order of events is that of a real interpreter; their times are not measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from replay.objects import ObjectProgram
from replay.objects.loop import STEP_NS
from replay.objects.rules import default_thresholds
from replay.objects.running import Batch, run_program
from replay.trace import Events, Metadata, Op, Provenance
from replay.trace.metadata import ThreadTimes


@dataclass(frozen=True)
class ObjectTrace:
    """The trace of an object program. `batches` runs it again at each call."""

    program: ObjectProgram
    seed: int
    _thread_times: list[ThreadTimes] = field(default_factory=list, init=False, compare=False)
    _visits: list[int] = field(default_factory=list, init=False, compare=False)

    @property
    def metadata(self) -> Metadata:
        """What is known of the trace; `thread_times` and `visits` after it has been read to its end."""
        origin = Provenance(workload=self.program.name, seed=self.seed, python=self.program.program.python)
        return Metadata(origin=origin, thread_times=tuple(self._thread_times), visits=tuple(self._visits))

    @property
    def duration_ns(self) -> None:
        return None

    @property
    def events_total(self) -> None:
        return None

    def with_collector(self, thresholds: Sequence[int | None], enabled: bool | None) -> "ObjectTrace":
        """Returns the trace under other settings of the collector; None keeps a setting of the program."""
        written = self.program.program
        own, release = written.collector, _release(written.python)
        kept = own.thresholds or list(default_thresholds(release))
        new = [kept[index] if limit is None else limit for index, limit in enumerate(thresholds)]
        collector = own.model_copy(update={"thresholds": new, "enabled": own.enabled if enabled is None else enabled})
        program = self.program._replace(program=written.model_copy(update={"collector": collector}))
        return replace(self, program=program)

    def batches(self) -> Iterator[Events]:
        written = self.program.program
        program = self.program._replace(program=written.model_copy(update={"seed": self.seed}))
        self._visits.clear()
        for batch in run_program(program, _release(written.python)):
            self._thread_times[:] = batch.thread_times
            self._visits.extend(batch.events["block"][batch.events["op"] == Op.GC_START].tolist())
            if len(batch.events):
                yield _events(batch)


def _release(python: str) -> tuple[int, int]:
    major, minor = map(int, python.split("."))
    return major, minor


def _events(batch: Batch) -> Events:
    """Returns a batch of the machine's events as columns of a trace."""
    rows = batch.events
    events = Events.empty(len(rows))
    events.thread[:] = 0 if batch.threads is None else batch.threads
    events.time_ns[:] = rows["step"] * STEP_NS if batch.times_ns is None else batch.times_ns
    events.op[:], events.domain[:] = rows["op"], rows["domain"]
    events.block[:], events.size[:] = rows["block"], rows["requested"]
    events.block[events.op == Op.GC_START] = 0
    return events
