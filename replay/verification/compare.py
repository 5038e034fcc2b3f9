"""Runs one trace on a real pymalloc and on its model, and compares the two.

Compared are the addresses of pymalloc's blocks, absolutely; which layer owns each block; and arenas mapped and
unmapped, with row and address, in order. Addresses of libc's blocks are not compared.
"""

import time
from dataclasses import dataclass

import numpy as np

from replay.config import StackConfig, load_config
from replay.simulation.addresses import run_addresses
from replay.trace import COLUMNS, REQUIRED, Domain, Events, MemoryTrace, Op, Trace
from replay.verification.harness import ARENA_EVENT, HarnessError, Played, play
from replay.verification.oracles import Oracle

PLACE = (8 << 30) + (4 << 10)
"""Default for the base modulo 16 GiB: far from where a new leaf of the arena tree begins, and so that an arena of
1 MiB has 63 pools, not 64, as it has at three places of four."""

KEPT_BYTES = 2 * 4096
"""What the harness has libc keep before the play."""
_LAYERS = ("libc", "pymalloc")


@dataclass(frozen=True)
class Difference:
    """Where a block went, in the real thing and in the model."""

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
    """The first arena event that is not the same; None where there are no more."""

    number: int
    real: tuple[int, int, int, int] | None
    """Row, kind (1 mapped, 0 unmapped), address and bytes."""
    model: tuple[int, int, int, int] | None

    def __str__(self) -> str:
        def tell(event: tuple[int, int, int, int] | None) -> str:
            if event is None:
                return "no more"
            return f"row {event[0]} {'maps' if event[1] else 'unmaps'} {event[3]} bytes at {event[2]:#x}"

        return f"arena event {self.number}: {tell(self.real)} in the real allocator, {tell(self.model)} in the model"


@dataclass(frozen=True)
class Agreement:
    """How far model and real allocator agree over one trace."""

    oracle: str
    events: int
    addresses_compared: int
    """Blocks that pymalloc owns in either."""
    addresses_equal: int
    owners_compared: int
    owners_equal: int
    arena_events_compared: int
    arena_events_equal: int
    releases: int
    """Arenas that the real allocator unmapped."""
    seconds: float
    """For both runs and the comparison."""
    difference: Difference | None
    arena_difference: ArenaDifference | None

    @property
    def exact(self) -> bool:
        return self.difference is None and self.arena_difference is None

    @property
    def unequal(self) -> int:
        """Addresses, owners and arena events that differ, together."""
        compared = self.addresses_compared + self.owners_compared + self.arena_events_compared
        return compared - self.addresses_equal - self.owners_equal - self.arena_events_equal


def verify(trace: Trace, oracle: Oracle, config: StackConfig | None = None, *, place: int = PLACE) -> Agreement:
    """Compares a real allocator with the model of `config`: by default with the one that must agree with it.

    `place` is the base of all mappings modulo 16 GiB (2 MiB for 32-bit, and from 3.12 on).
    """
    if any(batch.memalign_rows.size for batch in trace.batches()):
        raise HarnessError("memaligns are not pymalloc's; `replay verify --libc` compares them")
    start = time.perf_counter()
    played = play(trace, oracle.library, pool_bytes=oracle.pool_bytes, place=place)
    config = config or load_config(oracle.preset, oracle.overrides)
    linux = config.linux.model_copy(update={"mmap_base": played.base})
    config = config.model_copy(update={"linux": linux})
    addresses, owners, arena_events = run_addresses(_behind_kept_block(trace), config)
    addresses, owners, arena_events["row"] = addresses[1:], owners[1:], arena_events["row"] - 1
    blocks = played.addresses != 0
    same_owner = played.owners == owners
    small = (played.owners == 1) | (owners == 1)
    same = same_owner & ((played.addresses == addresses) | ~small)
    wrong = np.flatnonzero(blocks & ~same)
    arena_events = arena_events.astype(ARENA_EVENT)
    events_equal = _equal_prefix(played.arena_events, arena_events)
    events_compared = max(len(played.arena_events), len(arena_events))
    return Agreement(
        oracle=oracle.name,
        events=len(blocks),
        addresses_compared=int(np.count_nonzero(blocks & small)),
        addresses_equal=int(np.count_nonzero(blocks & small & same)),
        owners_compared=int(np.count_nonzero(blocks)),
        owners_equal=int(np.count_nonzero(blocks & same_owner)),
        arena_events_compared=events_compared,
        arena_events_equal=events_equal,
        releases=int(np.count_nonzero(played.arena_events["kind"] == 0)),
        seconds=time.perf_counter() - start,
        difference=_difference(trace, int(wrong[0]), played, addresses, owners) if len(wrong) else None,
        arena_difference=(
            _arena_difference(events_equal, played.arena_events, arena_events)
            if events_equal < events_compared
            else None
        ),
    )


def _behind_kept_block(trace: Trace) -> Trace:
    """The trace behind the block that the harness itself has libc keep, so that both heaps start about as full."""
    batches = [batch for batch in trace.batches() if batch.rows]
    row = {"time_ns": batches[0].time_ns[0], "domain": Domain.LIBC, "size": KEPT_BYTES}
    row["block"] = max(int(batch.block.max()) for batch in batches) + 1
    kept = Events(**{name: np.array([row.get(name, 0)], COLUMNS[name].memory_type) for name in REQUIRED})
    return MemoryTrace([kept, *batches], trace.metadata)


def _equal_prefix(real: np.ndarray, model: np.ndarray) -> int:
    """Events that are the same before the first that is not."""
    shorter = min(len(real), len(model))
    unequal = np.flatnonzero(real[:shorter] != model[:shorter])
    return int(unequal[0]) if len(unequal) else shorter


def _difference(trace: Trace, row: int, played: Played, addresses: np.ndarray, owners: np.ndarray) -> Difference:
    first = 0
    for batch in trace.batches():
        if row < first + batch.rows:
            break
        first += batch.rows
    return Difference(
        row=row,
        op=Op(int(batch.op[row - first])),
        size_bytes=int(batch.size[row - first]),
        real=int(played.addresses[row]),
        model=int(addresses[row]),
        real_owner=_LAYERS[int(played.owners[row])],
        model_owner=_LAYERS[int(owners[row])],
    )


def _arena_difference(number: int, real: np.ndarray, model: np.ndarray) -> ArenaDifference:
    return ArenaDifference(
        number,
        real[number].item() if number < len(real) else None,
        model[number].item() if number < len(model) else None,
    )
