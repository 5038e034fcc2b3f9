"""The trace of an object program.

Each step of the machine, an instruction or the end of one reference, takes STEP_NS. Only the order of events is that of
a real interpreter; their times are not measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from replay.objects import ObjectProgram
from replay.objects.running import run_program
from replay.trace import Events, Metadata, Op, Provenance

STEP_NS = 20


@dataclass(frozen=True)
class ObjectTrace:
    """The trace of an object program. `batches` runs it again at each call."""

    program: ObjectProgram
    seed: int

    @property
    def metadata(self) -> Metadata:
        return Metadata(origin=Provenance(workload=self.program.name, seed=self.seed))

    @property
    def duration_ns(self) -> None:
        return None

    @property
    def events_total(self) -> None:
        return None

    def batches(self) -> Iterator[Events]:
        written = self.program.program
        program = self.program._replace(program=written.model_copy(update={"seed": self.seed}))
        major, minor = map(int, written.python.split("."))
        for batch in run_program(program, (major, minor)):
            if len(batch.events):
                yield _events(batch.events)


def _events(rows: np.ndarray) -> Events:
    """Returns a batch of the machine's events as columns of a trace."""
    events = Events.empty(len(rows))
    events.thread[:] = 0
    events.time_ns[:], events.op[:], events.domain[:] = rows["step"] * STEP_NS, rows["op"], rows["domain"]
    events.block[:], events.size[:] = rows["block"], np.where(rows["op"] < Op.GC_START, rows["requested"], 0)
    return events
