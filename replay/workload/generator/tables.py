"""Creates the tables of the generator's kernels from a workload's sources, and enlarges them."""

import numpy as np

from replay.trace import NUMBERS, Domain, Op
from replay.workload import BlockSet, Bursts, Fixed, OnOff, Source, Stream, Workload
from replay.workload.generator import streams
from replay.workload.generator.distributions import NEVER_NS, expected, make_key, make_law
from replay.workload.generator.streams import NONE, SourceArrays, Stage

_BUCKETS = 1 << 14
_BUCKETS_A_WINDOW = 64
_FIRST_ROOM = 1 << 12


def base_rate(source: Source) -> float:
    """Returns the blocks (or bursts) per second without a phase."""
    if isinstance(source, BlockSet):
        return source.churn
    assert isinstance(source, Stream)
    return source.arrivals.rate


def rows_expected(source: Source, rate: float, window_ns: int) -> float:
    """Returns about how many events a source with this rate has in the busiest window of this length."""
    if isinstance(source, BlockSet):
        return 2 * rate * window_ns / 1e9
    assert isinstance(source, Stream)
    arrivals, rows = source.arrivals, 2.0 + (source.grow.steps if source.grow else 0)
    if isinstance(arrivals, Bursts):
        rate *= expected(arrivals.count)
        rate = min(rate, 1e9 / arrivals.spacing) if arrivals.spacing else rate
    if isinstance(arrivals, OnOff):
        share = arrivals.busy / (arrivals.busy + arrivals.idle)
        return rows * rate * min(window_ns, window_ns * share + arrivals.busy) / 1e9
    return rows * rate * window_ns / 1e9


def make_arrays(name: str, source: Source, index: int, first_member: int, threads: int, seed: int) -> SourceArrays:
    """Returns the arrays of a source at its start. `first_member`: its index in the table of the members of all
    sets."""
    arrivals = source.arrivals if isinstance(source, Stream) else None
    regular = isinstance(arrivals, Fixed) or (isinstance(arrivals, Bursts) and arrivals.timing == "fixed")
    spacing = arrivals.spacing if isinstance(arrivals, Bursts) else 0
    built_ns = source.start
    if isinstance(source, BlockSet):
        spacing, built_ns = source.spacing, source.start + source.blocks * source.spacing
    on_off = arrivals if isinstance(arrivals, OnOff) else None
    traits = np.zeros(streams.TRAITS, np.int64)
    traits[streams.INDEX] = index
    traits[streams.POISSON] = not regular
    traits[streams.SPACING_NS] = spacing
    traits[streams.START_NS] = source.start
    traits[streams.STOP_NS] = NEVER_NS if source.stop is None else source.stop
    traits[streams.BUSY_NS], traits[streams.IDLE_NS] = (on_off.busy, on_off.idle) if on_off else (1, 0)
    traits[streams.OP] = Op[source.op.upper()]
    traits[streams.FIRST_MEMBER], traits[streams.MEMBERS] = first_member, source.members
    traits[streams.GAP_KEY], traits[streams.GAP_STRIDE] = make_key(seed, name, "gap")
    traits[streams.VICTIM_KEY], traits[streams.VICTIM_STRIDE] = make_key(seed, name, "victim")
    state = np.zeros(6, np.int64)
    state[streams.NEXT_TICK] = -1
    state[streams.BURST_REMAINING], state[streams.BURSTS] = source.members, min(source.members, 1)
    state[streams.BURST_NS], state[streams.ANCHOR_NS] = source.start, built_ns
    return SourceArrays(
        state=state,
        pace=np.array([base_rate(source), 0.0, 0.0]),
        traits=traits,
        threads=np.array(source.threads or range(threads), np.int64),
        size=make_law(source.size, seed, name, "size", least=0),
        lifetime=make_law(
            source.lifetime if isinstance(source, Stream) else "forever", seed, name, "lifetime", least=1, most=NEVER_NS
        ),
        burst=make_law(arrivals.count if isinstance(arrivals, Bursts) else 1, seed, name, "count", least=0),
    )


def make_stage(workload: Workload, window_ns: int) -> Stage:
    """Returns empty tables for all sources. A window covers about _BUCKETS_A_WINDOW buckets of the wheel."""
    sources = list(workload.sources().values())
    growth = np.zeros((len(sources), streams.GROWTH_COLUMNS), np.int64)
    factor = np.zeros(len(sources), np.float64)
    for index, source in enumerate(sources):
        growth[index, streams.DOMAIN] = Domain[source.domain.upper()]
        if isinstance(source, Stream) and source.grow:
            growth[index, streams.GROW_STEPS] = source.grow.steps
            growth[index, streams.GROW_SPACING_NS] = source.grow.spacing
            growth[index, streams.GROW_INCREMENT] = source.grow.increment or 0
            factor[index] = source.grow.factor or 0.0
    counts = np.zeros(streams.COUNTS, np.int64)
    counts[streams.WHEEL_SHIFT] = max(0, (window_ns // _BUCKETS_A_WINDOW).bit_length() - 1)
    counts[streams.END_OF_ALL_NS] = workload.duration
    counts[streams.STEPS_MOST] = growth[:, streams.GROW_STEPS].max()
    return Stage(
        slots=np.full((_FIRST_ROOM, streams.SLOT_COLUMNS), NONE, np.int64),
        idle=np.empty(_FIRST_ROOM, np.int64),
        numbers=np.empty(_FIRST_ROOM, np.int64),
        number_counts=np.zeros(1, NUMBERS),
        members=np.full(sum(source.members for source in sources), NONE, np.int64),
        heads=np.full(_BUCKETS, NONE, np.int64),
        growth=growth,
        factor=factor,
        **_make_rows(_FIRST_ROOM),
        counts=counts,
    )


def with_larger_window(stage: Stage) -> Stage:
    """Returns the tables with at least twice the rows of the window, enough for any kernel to continue."""
    count, used = int(stage.counts[streams.ROWS]), int(stage.counts[streams.SLOTS_USED])
    steps = int(stage.counts[streams.STEPS_MOST])
    larger = stage._replace(**_make_rows(max(2 * len(stage.rows), count + max(steps + 4, used))))
    larger.rows[:count] = stage.rows[:count]
    return larger


def _make_rows(room: int) -> dict[str, np.ndarray]:
    return {
        "rows": np.empty((room, streams.ROW_COLUMNS), np.int64),
        "order": np.empty(room, np.int64),
        "spare": np.empty(room, np.int64),
        "starts": np.empty(room + 3, np.int64),
    }


def with_more_slots(stage: Stage) -> Stage:
    """Returns the tables with twice the slots."""
    slots_before = len(stage.idle)
    slots = np.full((2 * slots_before, streams.SLOT_COLUMNS), NONE, np.int64)
    idle, numbers = np.empty(2 * slots_before, np.int64), np.empty(2 * slots_before, np.int64)
    slots[:slots_before], idle[:slots_before], numbers[:slots_before] = stage.slots, stage.idle, stage.numbers
    return stage._replace(slots=slots, idle=idle, numbers=numbers)
