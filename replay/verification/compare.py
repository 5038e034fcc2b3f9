"""Runs one trace on a real pymalloc and on its model, and compares the two.

The comparison has the absolute addresses of pymalloc's blocks, the layer that owns each block, and the sequence of
mapped and unmapped arenas with rows and addresses. Addresses of libc's blocks are not compared.
"""

import time
from dataclasses import dataclass

import numpy as np

from replay.config import StackConfig, load_config
from replay.simulation.addresses import run_addresses
from replay.trace import COLUMNS, REQUIRED, Domain, Events, MemoryTrace, Op, Trace
from replay.verification.harness import ARENA_EVENT, HarnessError, RealRun, run_trace
from replay.verification.oracles import Oracle

PLACE = (8 << 30) + (4 << 10)
"""Default of the base modulo 16 GiB. It is far from the start of a leaf of the arena tree, and not aligned to pools, so
an arena of 1 MiB has 63 pools, not 64, as for three of four addresses."""

KEPT_BYTES = 2 * 4096
"""Size of the libc block that the harness allocates before the trace and never frees."""
_LAYERS = ("libc", "pymalloc")


@dataclass(frozen=True)
class Difference:
    """A block with different addresses or owners in the real allocator and in the model."""

    row: int
    op: Op
    size_bytes: int
    real: int
    model: int
    real_owner: str
    model_owner: str

    def __str__(self) -> str:
        return (
            f"row {self.row}: {self.op.name.lower()} of {self.size_bytes} bytes is at {self.real:#x} "
            f"({self.real_owner}) in the real allocator, at {self.model:#x} ({self.model_owner}) in the model"
        )


@dataclass(frozen=True)
class ArenaDifference:
    """The first arena event that differs; None on the side that has no more events."""

    number: int
    real: tuple[int, int, int, int] | None
    """Row, kind (1 mapped, 0 unmapped), address and bytes."""
    model: tuple[int, int, int, int] | None

    def __str__(self) -> str:
        def describe(event: tuple[int, int, int, int] | None) -> str:
            if event is None:
                return "no more"
            return f"row {event[0]} {'maps' if event[1] else 'unmaps'} {event[3]} bytes at {event[2]:#x}"

        real, model = describe(self.real), describe(self.model)
        return f"arena event {self.number}: {real} in the real allocator, {model} in the model"


@dataclass(frozen=True)
class Agreement:
    """The result of comparing model and real allocator for one trace."""

    oracle: str
    events: int
    addresses_compared: int
    """Number of blocks that pymalloc owns in at least one of both."""
    addresses_equal: int
    owners_compared: int
    owners_equal: int
    arena_events_compared: int
    arena_events_equal: int
    releases: int
    """Number of arenas that the real allocator unmapped."""
    seconds: float
    """Time of both runs and the comparison."""
    difference: Difference | None
    arena_difference: ArenaDifference | None

    @property
    def exact(self) -> bool:
        return self.difference is None and self.arena_difference is None

    @property
    def unequal(self) -> int:
        """Number of addresses, owners and arena events that differ."""
        compared = self.addresses_compared + self.owners_compared + self.arena_events_compared
        return compared - self.addresses_equal - self.owners_equal - self.arena_events_equal


def verify(trace: Trace, oracle: Oracle, config: StackConfig | None = None, *, place: int = PLACE) -> Agreement:
    """Compares a real allocator with the model of `config`. Default: the configuration that must be equal to it.

    `place` is the base of all mappings modulo 16 GiB (2 MiB for 32-bit, and from 3.12 on).
    """
    if any(batch.memalign_rows.size for batch in trace.batches()):
        raise HarnessError("memaligns are not pymalloc's; `replay verify --libc` compares them")
    start = time.perf_counter()
    real = run_trace(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=place)
    config = config or load_config(oracle.preset, oracle.overrides)
    linux = config.linux.model_copy(update={"mmap_base": real.base})
    config = config.model_copy(update={"linux": linux})
    addresses, owners, arena_events = run_addresses(_after_kept_block(trace), config)
    addresses, owners, arena_events["row"] = addresses[1:], owners[1:], arena_events["row"] - 1
    blocks = real.addresses != 0
    same_owner = real.owners == owners
    small = (real.owners == 1) | (owners == 1)
    same = same_owner & ((real.addresses == addresses) | ~small)
    wrong = np.flatnonzero(blocks & ~same)
    arena_events = arena_events.astype(ARENA_EVENT)
    events_equal = _equal_prefix(real.arena_events, arena_events)
    events_compared = max(len(real.arena_events), len(arena_events))
    return Agreement(
        oracle=oracle.name,
        events=len(blocks),
        addresses_compared=int(np.count_nonzero(blocks & small)),
        addresses_equal=int(np.count_nonzero(blocks & small & same)),
        owners_compared=int(np.count_nonzero(blocks)),
        owners_equal=int(np.count_nonzero(blocks & same_owner)),
        arena_events_compared=events_compared,
        arena_events_equal=events_equal,
        releases=int(np.count_nonzero(real.arena_events["kind"] == 0)),
        seconds=time.perf_counter() - start,
        difference=_difference(trace, int(wrong[0]), real, addresses, owners) if len(wrong) else None,
        arena_difference=(
            _arena_difference(events_equal, real.arena_events, arena_events) if events_equal < events_compared else None
        ),
    )


def _after_kept_block(trace: Trace) -> Trace:
    """Returns the trace after an allocation of the harness's own libc block, so both heaps are about equally full."""
    batches = [batch for batch in trace.batches() if batch.rows]
    row = {"time_ns": batches[0].time_ns[0], "domain": Domain.LIBC, "size": KEPT_BYTES}
    row["block"] = max(int(batch.block.max()) for batch in batches) + 1
    kept = Events(**{name: np.array([row.get(name, 0)], COLUMNS[name].memory_type) for name in REQUIRED})
    return MemoryTrace([kept, *batches], trace.metadata)


def _equal_prefix(real: np.ndarray, model: np.ndarray) -> int:
    """Returns the number of equal events before the first difference."""
    shorter = min(len(real), len(model))
    unequal = np.flatnonzero(real[:shorter] != model[:shorter])
    return int(unequal[0]) if len(unequal) else shorter


def _difference(trace: Trace, row: int, real: RealRun, addresses: np.ndarray, owners: np.ndarray) -> Difference:
    first = 0
    for batch in trace.batches():
        if row < first + batch.rows:
            break
        first += batch.rows
    return Difference(
        row=row,
        op=Op(int(batch.op[row - first])),
        size_bytes=int(batch.size[row - first]),
        real=int(real.addresses[row]),
        model=int(addresses[row]),
        real_owner=_LAYERS[int(real.owners[row])],
        model_owner=_LAYERS[int(owners[row])],
    )


def _arena_difference(number: int, real: np.ndarray, model: np.ndarray) -> ArenaDifference:
    return ArenaDifference(
        number,
        real[number].item() if number < len(real) else None,
        model[number].item() if number < len(model) else None,
    )
