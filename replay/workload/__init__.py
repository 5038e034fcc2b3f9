"""The schema of workloads in YAML: the allocations of a program as streams, sets and phases.

A *stream* allocates blocks one after the other, with distributions of arrivals, sizes and lifetimes. A *set* has a
fixed number of blocks and replaces them one at a time. A *phase* changes the rates of streams, or frees groups of
blocks. `docs/workloads.md` explains every key.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, Tag, model_validator

from replay.support.errors import WorkloadError
from replay.support.names import nearest
from replay.support.units import Rate
from replay.support.yaml_documents import Document, Form, Problem
from replay.workload.distribution_schema import (
    BlockSize,
    Count,
    CountLaw,
    LifetimeLaw,
    PositiveSpan,
    SizeLaw,
    Span,
)

EVERYTHING = "all"
"""In a phase: all streams and sets."""

EXAMPLE = "duration: 10 s"
"""A valid line of a workload, for error messages."""
MAX_STREAMS = 4096
MAX_STEPS = 10_000
PositiveRate = Annotated[Rate, Field(gt=0, le=1e9)]
PositiveCount = Annotated[Count, Field(gt=0)]
DomainName: TypeAlias = Literal["raw", "mem", "obj", "libc"]


class Fixed(Form):
    """Allocations at equal intervals; the first at the start of the stream."""

    kind: Literal["fixed"]
    rate: PositiveRate


class Poisson(Form):
    """Allocations at random times, independent of each other."""

    kind: Literal["poisson"]
    rate: PositiveRate


class Bursts(Form):
    """Bursts of `count` allocations, `spacing` apart. A burst starts after the end of the previous one."""

    kind: Literal["bursts"]
    rate: PositiveRate
    count: CountLaw
    spacing: Span = 200
    timing: Literal["poisson", "fixed"] = "poisson"


class OnOff(Form):
    """Poisson at `rate` while busy, none while idle; alternating, busy first."""

    kind: Literal["on-off"]
    rate: PositiveRate
    busy: PositiveSpan
    idle: PositiveSpan


Arrivals = Annotated[Fixed | Poisson | Bursts | OnOff, Field(discriminator="kind")]


class Growth(Form):
    """Reallocations of a block: `steps` of them, `spacing` apart, by a factor or an increment."""

    factor: Annotated[float, Field(gt=1, le=1000)] | None = None
    increment: Annotated[BlockSize, Field(gt=0)] | None = None
    steps: Annotated[PositiveInt, Field(le=MAX_STEPS)]
    spacing: PositiveSpan

    @model_validator(mode="after")
    def _grows_one_way(self) -> "Growth":
        if (self.factor is None) == (self.increment is None):
            raise ValueError("a block grows by `factor` or by `increment`; set one of them")
        return self


class Source(Form):
    """Keys of both streams and sets."""

    size: SizeLaw
    op: Literal["malloc", "calloc"] = "malloc"
    domain: DomainName = "obj"
    threads: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None
    """Threads that allocate in turns, one burst each. Default: all threads."""
    group: str | None = None
    start: Span = 0
    stop: Span | None = None

    @property
    def members(self) -> int:
        """Number of blocks that are replaced one by one; 0 for a stream."""
        return 0


class Stream(Source):
    """Blocks that are allocated over time, and freed after a lifetime."""

    arrivals: Arrivals
    lifetime: LifetimeLaw
    grow: Growth | None = None


class BlockSet(Source):
    """Blocks allocated at the start, `spacing` apart, and replaced at random at the rate `churn`."""

    blocks: PositiveCount
    spacing: Span = 200
    churn: Annotated[Rate, Field(le=1e9)] = 0.0

    @property
    def members(self) -> int:
        return self.blocks


class Ramp(Form):
    """A factor that changes linearly over the phase, in 32 steps."""

    start: Annotated[NonNegativeFloat, Field(alias="from", le=1e6)]
    to: Annotated[NonNegativeFloat, Field(le=1e6)]


def _factor_or_ramp(value: Any) -> str:
    return "ramp" if isinstance(value, (dict, Ramp)) else "factor"


Factor = Annotated[
    Annotated[NonNegativeFloat, Field(le=1e6), Tag("factor")] | Annotated[Ramp, Tag("ramp")],
    Discriminator(_factor_or_ramp),
]


class Phase(Form):
    """Rates are multiplied from `start` for `duration` or to the end. At `start`, groups are freed and threads end."""

    name: Annotated[str, Field(min_length=1)]
    start: Span
    duration: PositiveSpan | None = None
    rates: dict[str, Factor] = Field(default_factory=dict)
    free: list[str] = Field(default_factory=list)
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    end_threads: list[NonNegativeInt] = Field(default_factory=list)
    """Later allocations with these numbers belong to new threads."""

    @model_validator(mode="after")
    def _ramp_has_an_end(self) -> "Phase":
        if self.duration is None and any(isinstance(factor, Ramp) for factor in self.rates.values()):
            raise ValueError("a ramp needs the phase's `duration`")
        return self


class Process(Form):
    """Static memory and stacks; the stack sizes are for one thread."""

    static: BlockSize = 0
    stack_reserved: BlockSize = 0
    stack_touched: BlockSize = 0

    @model_validator(mode="after")
    def _touches_at_most_reserved(self) -> "Process":
        if self.stack_touched > self.stack_reserved:
            raise ValueError("stack_touched is more than stack_reserved")
        return self


class Workload(Form):
    """A workload: an allocation history, described by random distributions."""

    description: str = ""
    """The kind of program that behaves like this, in one sentence."""
    duration: PositiveSpan
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    threads: Annotated[PositiveInt, Field(le=65536)] = 1
    warm_up: PositiveSpan | None = None
    process: Process = Process()
    streams: dict[str, Stream] = Field(default_factory=dict, max_length=MAX_STREAMS)
    sets: dict[str, BlockSet] = Field(default_factory=dict, max_length=MAX_STREAMS)
    phases: list[Phase] = Field(default_factory=list)

    def all_phases(self) -> list[Phase]:
        """Returns the two phases of `warm_up`, if it is set, and the phases of the file."""
        if self.warm_up is None:
            return self.phases
        ramp = Ramp.model_validate({"from": 0, "to": 1})
        warm_up = Phase(name="warm-up", start=0, duration=self.warm_up, rates={EVERYTHING: ramp})
        return [warm_up, Phase(name="steady", start=self.warm_up), *self.phases]

    def sources(self) -> dict[str, Source]:
        """Returns streams, then sets, in the order of the file."""
        return {**self.streams, **self.sets}


def load_workload(path: Path) -> Workload:
    """Returns the workload in a file. Errors name file, line and key."""
    return parse_workload(Document(path, WorkloadError, EXAMPLE))


def parse_workload(document: Document) -> Workload:
    """Returns the workload of a document."""
    workload = document.parse(Workload)
    problems = list(_check_references(workload))
    if problems:
        raise document.refusal(problems)
    return workload


def _check_references(workload: Workload) -> Iterator[Problem]:
    """Yields problems with references between parts of the file: names, threads and times."""
    sources = workload.sources()
    everyone = [*workload.streams.values(), *workload.sets.values()]
    groups = sorted({source.group for source in everyone if source.group})
    if not sources:
        yield Problem((), "nothing is allocated; write at least one entry under `streams` or `sets`")
    for name in workload.sets:
        if name in workload.streams:
            yield Problem(("sets", name), "a stream already has this name; rename one of them")
    for kind in ("streams", "sets"):
        for name, source in getattr(workload, kind).items():
            if name == EVERYTHING:
                yield Problem((kind, name), "this name is reserved for all streams and sets; choose another")
            if source.start >= workload.duration:
                yield Problem((kind, name, "start"), "is not before the workload's end")
            if source.stop is not None and source.stop <= source.start:
                yield Problem((kind, name, "stop"), "is not after its start")
            for index, thread in enumerate(source.threads or ()):
                if thread >= workload.threads:
                    known = f"the process has threads 0 to {workload.threads - 1}; raise `threads`"
                    yield Problem((kind, name, "threads", index), f"unknown thread {thread}; {known}")
    if workload.warm_up is not None and workload.warm_up >= workload.duration:
        yield Problem(("warm_up",), "is not shorter than the workload's duration")
    for index, phase in enumerate(workload.phases):
        if phase.start >= workload.duration:
            yield Problem(("phases", index, "start"), "is not before the workload's end")
        if "fraction" in phase.model_fields_set and not phase.free:
            yield Problem(("phases", index, "fraction"), "requires the key `free`")
        targets = [EVERYTHING, *sources, *groups]
        for name in phase.rates:
            if name not in targets:
                message = f"unknown stream, set or group; {nearest(name, targets)}"
                yield Problem(("phases", index, "rates", name), message)
        for place, group in enumerate(phase.free):
            if group not in groups:
                message = f"unknown group {group!r}; {nearest(group, groups)}"
                yield Problem(("phases", index, "free", place), message)
        for place, thread in enumerate(phase.end_threads):
            reason = _why_no_end(workload, phase, place, thread)
            if reason:
                yield Problem(("phases", index, "end_threads", place), reason)


def _why_no_end(workload: Workload, phase: Phase, place: int, thread: int) -> str | None:
    """Returns why a thread cannot end in a phase; None if it can."""
    if thread == 0:
        return "thread 0 is the main one, which ends with the process"
    if thread >= workload.threads:
        return f"unknown thread {thread}; the process has threads 0 to {workload.threads - 1}; raise `threads`"
    return f"thread {thread} already ends in this phase" if thread in phase.end_threads[:place] else None
