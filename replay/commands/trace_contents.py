"""The figures of `replay trace info`, from one pass over a trace, batch by batch."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from replay.commands.trace_sites import SiteCount, SiteCounts
from replay.commands.trace_types import SHOWN, TypeCount, TypeCounts
from replay.trace.provenance import Provenance

if TYPE_CHECKING:
    import numpy as np

    from replay.trace import Events, Trace


@dataclass
class ProcessCount:
    """The counts of one of several processes."""

    name: str
    threads: int
    events: int
    memory: dict[str, int]


@dataclass
class Contents:
    """The counts of a trace; the field names are the keys of `replay trace info --json`."""

    events: int = 0
    duration_ns: int = 0
    """From the first event to the last."""
    threads: int = 0
    events_by_op: dict[str, int] = field(default_factory=dict)
    events_by_domain: dict[str, int] = field(default_factory=dict)
    """Events that concern a block, by domain."""
    requests_by_size: dict[int, int] = field(default_factory=dict)
    """Allocations and reallocs by the largest size of the class: 0, 16, 32 … 512, then powers of two."""
    live_blocks: int = 0
    """At the end as in `replay run`: before the interpreter's teardown, if the trace has a mark of it."""
    live_bytes: int = 0
    live_blocks_after_teardown: int | None = None
    """After the last event, if the trace has a mark of teardown; else None."""
    live_bytes_after_teardown: int | None = None
    live_blocks_peak: int = 0
    live_bytes_peak: int = 0
    phases: tuple[str, ...] = ()
    sites: int = 0
    calls_with_site: int = 0
    """Allocations and reallocs with a call site."""
    bytes_with_site: int = 0
    """Sum of their sizes."""
    sites_by_bytes: list[SiteCount] = field(default_factory=list)
    """The call sites that requested the most bytes."""
    sites_by_calls: list[SiteCount] = field(default_factory=list)
    types: int = 0
    """Types of which the trace has objects; equal ones count once."""
    calls_with_type: int = 0
    """Allocations and reallocs of blocks with a type."""
    bytes_with_type: int = 0
    types_by_bytes: list[TypeCount] = field(default_factory=list)
    """The types whose objects requested the most bytes."""
    types_by_calls: list[TypeCount] = field(default_factory=list)
    collections: dict[int, int] = field(default_factory=dict)
    """Garbage collections by generation, of a recording with types."""
    collected: int = 0
    """Objects that they freed."""
    origin: Provenance = field(default_factory=Provenance)
    process: dict[str, int] = field(default_factory=dict)
    """Sums over all processes."""
    processes: list[ProcessCount] = field(default_factory=list)
    """Empty for a trace of one process."""
    digest: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"origin": self.origin.texts()}


def read_contents(trace: "Trace", file: str) -> Contents:
    """Reads the trace once, batch by batch."""
    import numpy as np

    from replay.commands.program_end import ProgramEnd
    from replay.support.progress import progress_bar
    from replay.trace import Digest, Domain, Op
    from replay.trace.block_ops import concerns_block, requests
    from replay.trace.processes import processes_of
    from replay.trace.validation import validated

    by_op, by_domain, by_class = np.zeros(256, int), np.zeros(256, int), np.zeros(128, int)
    threads: set[int] = set()
    processes = processes_of(trace)
    by_process = np.zeros(max(1, len(processes.table)), int)
    trace, digest, sites, types = validated(trace, file), Digest(), SiteCounts(), TypeCounts()
    program = ProgramEnd(trace.metadata)
    with progress_bar("reading", trace.events_total) as progress:
        for events in trace.batches():
            digest.update(events)
            by_op += np.bincount(events.op, minlength=256)
            by_domain += np.bincount(events.domain[concerns_block(events.op)], minlength=256)
            by_class += np.bincount(_size_classes(events.size[requests(events.op)]), minlength=128)
            threads |= _threads(events)
            by_process += np.bincount(processes.owners(events.thread), minlength=by_process.shape[0])
            sites.add(events, len(trace.metadata.sites))
            types.add(events, len(trace.metadata.types))
            program.follow(events)
            progress(trace.validator.rows)
    metadata, validator = trace.metadata, trace.validator
    after = validator.live_blocks, validator.live_bytes
    by_type = types.all(metadata.types)
    live_blocks, live_bytes = program.live or after
    blocks_after, bytes_after = after if program.live else (None, None)
    return Contents(
        events=validator.rows,
        duration_ns=validator.span_ns,
        threads=len(threads),
        events_by_op={op.name.lower(): int(by_op[op]) for op in Op},
        events_by_domain={domain.name.lower(): int(by_domain[domain]) for domain in Domain},
        requests_by_size={_class_bytes(index): int(by_class[index]) for index in np.flatnonzero(by_class).tolist()},
        live_blocks=live_blocks,
        live_bytes=live_bytes,
        live_blocks_after_teardown=blocks_after,
        live_bytes_after_teardown=bytes_after,
        live_blocks_peak=validator.blocks_peak,
        live_bytes_peak=validator.bytes_peak,
        phases=metadata.phases,
        sites=len(metadata.sites),
        calls_with_site=int(sites.calls.sum()),
        bytes_with_site=int(sites.bytes.sum()),
        sites_by_bytes=sites.most(metadata.sites, by_bytes=True),
        sites_by_calls=sites.most(metadata.sites, by_bytes=False),
        types=len(by_type),
        calls_with_type=sum(count.calls for count in by_type),
        bytes_with_type=sum(count.bytes for count in by_type),
        types_by_bytes=by_type[:SHOWN],
        types_by_calls=sorted(by_type, key=lambda count: (-count.calls, -count.bytes, count.type))[:SHOWN],
        collections=types.collections,
        collected=sum(count.collected for count in by_type),
        origin=metadata.origin,
        process=asdict(metadata.memory),
        processes=[
            ProcessCount(process.name, len(process.threads), int(events), asdict(process.memory))
            for process, events in zip(metadata.processes, by_process, strict=False)
        ],
        digest=digest.hexdigest(metadata.processes),
    )


def _threads(events: "Events") -> set[int]:
    import numpy as np

    changes = np.flatnonzero(events.thread[1:] != events.thread[:-1]) + 1
    return set(np.unique(events.thread[changes]).tolist()) | set(events.thread[:1].tolist())


def _size_classes(size: "np.ndarray") -> "np.ndarray":
    """Returns class numbers: 0 for size 0, 1 to 32 in steps of 16 bytes up to 512, then one for each power of two."""
    import numpy as np

    bit_length = np.frexp((size - 1).astype(np.float64))[1]
    return np.where(size <= 512, (size + 15) >> 4, 32 - 9 + bit_length)


def _class_bytes(index: int) -> int:
    return 16 * index if index <= 32 else 512 << (index - 32)
