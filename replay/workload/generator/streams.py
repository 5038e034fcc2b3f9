"""Kernels that generate the events of streams and sets, one window of time in each call.

A *source* is a stream or a set. Size and lifetime of its n-th block are draws number n. The time of its allocation
depends only on the source's counters and on the history of its rate. So events do not depend on where windows begin and
end.

A *slot* is a row in the table of live blocks. Slots are reused, so the size of the table is proportional to the number
of live blocks. The next event of a block (a realloc, a free) is in the *wheel*: a ring of buckets by time; each bucket
is a chain of slots. For a window, the events that are due are taken from the wheel, events of the sources are added,
all are sorted, and then blocks are numbered.

*Order.* Events are sorted by (time, key). A key has the source's index, the number of the block that caused the event,
and one bit: allocations before frees. No two events have the same time and key.

*Invariants* between windows. `DUE_NS` of a live slot is not before the end of the last window. The slot is in the wheel
exactly if `DUE_NS` is before the end of the workload. `members[i]` is -1 or a live slot whose `MEMBER` is i.
"""

from typing import NamedTuple

import numpy as np

from replay.jit.compiling import entry, leaf
from replay.support.limits import MAX_SIZE
from replay.trace import Op, release_number, take_number
from replay.workload.generator.distributions import NEVER_NS, Law, draw, log, random_part, random_words
from replay.workload.generator.ordering import ROW_KEY, ROW_TIME_NS, sort_rows

DONE, FULL_WINDOW, FULL_SLOTS = range(3)
NONE = -1
MAIN_THREAD = 0

_MALLOC, _REALLOC, _FREE = int(Op.MALLOC), int(Op.REALLOC), int(Op.FREE)
_MARK, _THREAD_END = int(Op.MARK), int(Op.THREAD_END)
_SOURCE_SHIFT = 50
"""A key is source << 50 | block << 1 | freed, for up to 2**13 sources with 2**49 blocks each."""
_BLOCK = (1 << _SOURCE_SHIFT) - 1

# places in SourceArrays.state; NEXT_TICK is -1 before the first
NEXT_BLOCK, NEXT_TICK, BURST_REMAINING, BURST_NS, BURSTS, ANCHOR_NS = range(6)
# places in SourceArrays.pace; ticks are counted in expected arrivals, so that a change of rate only bends the clock
RATE, TICK, ANCHOR_TICK = range(3)
# places in SourceArrays.traits; the last four are keys and strides of random streams, for gaps and for a set's victims
INDEX, POISSON, SPACING_NS, START_NS, STOP_NS, BUSY_NS, IDLE_NS, OP, FIRST_MEMBER, MEMBERS = range(10)
GAP_KEY, GAP_STRIDE, VICTIM_KEY, VICTIM_STRIDE, TRAITS = range(10, 15)
# columns of Stage.slots
KEY, DUE_NS, END_NS, SIZE, STEPS, THREAD, MEMBER, BLOCK, CHAIN, SLOT_COLUMNS = range(10)
# columns of Stage.rows; the first two are those that replay.workload.generator.ordering sorts by
ROW_SLOT, ROW_OP, ROW_SIZE, ROW_COLUMNS = range(2, 6)
# columns of Stage.growth
GROW_STEPS, GROW_SPACING_NS, GROW_INCREMENT, DOMAIN, GROWTH_COLUMNS = range(5)
# places in Stage.counts
SLOTS_USED, SLOTS_IDLE, ROWS, WHEEL_SHIFT, END_OF_ALL_NS, STEPS_MOST, COUNTS = range(7)


class SourceArrays(NamedTuple):
    """A source, for kernels. `state` and `pace` change; other fields are constant."""

    state: np.ndarray
    pace: np.ndarray
    """Blocks (or bursts) per second of busy time; tick of the next one; tick of the last change of the rate."""
    traits: np.ndarray
    threads: np.ndarray
    size: Law
    lifetime: Law
    burst: Law
    """Number of blocks at a tick."""


class Stage(NamedTuple):
    """The tables of all sources. All but `factor` are int64."""

    slots: np.ndarray
    """A row for each slot; `KEY` is -1 if the slot is free."""
    idle: np.ndarray
    """Stack of free slots."""
    numbers: np.ndarray
    """Stack of free block numbers."""
    number_counts: np.ndarray
    members: np.ndarray
    """Slot of each member of each set."""
    heads: np.ndarray
    """The wheel: `heads[(time >> shift) % len]` begins a chain of slots."""
    growth: np.ndarray
    """A row for each source: growth of its blocks (none if GROW_STEPS is 0), and its domain."""
    factor: np.ndarray
    """For each source, the factor by which blocks grow; 0 if they grow by an increment."""
    rows: np.ndarray
    """The events of the window, unsorted."""
    order: np.ndarray
    spare: np.ndarray
    starts: np.ndarray
    """Memory for sorting: `order` and `spare` are as long as `rows`, `starts` is three longer."""
    counts: np.ndarray


@leaf
def _add_row(rows: np.ndarray, counts: np.ndarray, time_ns: int, key: int, slot: int, op: int, size: int) -> None:
    row = rows[counts[ROWS]]
    row[ROW_TIME_NS] = time_ns
    row[ROW_KEY] = key
    row[ROW_SLOT] = slot
    row[ROW_OP] = op
    row[ROW_SIZE] = size
    counts[ROWS] += 1


@leaf
def _put_into_wheel(slots: np.ndarray, heads: np.ndarray, counts: np.ndarray, slot: int, due_ns: int) -> None:
    """Puts a slot into the wheel, unless it is due after the end."""
    slots[slot, DUE_NS] = due_ns
    if due_ns < counts[END_OF_ALL_NS]:
        bucket = (due_ns >> counts[WHEEL_SHIFT]) & (heads.shape[0] - 1)
        slots[slot, CHAIN] = heads[bucket]
        heads[bucket] = slot


@leaf
def _grow(size: int, increment: int, factor: float) -> int:
    """Returns the size after one more step."""
    return min(max(size + 1, int(size * factor)) if factor > 0.0 else size + increment, MAX_SIZE)


@leaf
def _add_events(
    slots: np.ndarray,
    heads: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    growth: np.ndarray,
    factor: np.ndarray,
    slot: int,
    until_ns: int,
) -> None:
    """Adds the events of a block before `until_ns` to the window, and puts its next event into the wheel."""
    due, end, key = slots[slot, DUE_NS], slots[slot, END_NS], slots[slot, KEY]
    while due < until_ns:
        if due == end:
            _add_row(rows, counts, due, key | 1, slot, _FREE, 0)
            slots[slot, DUE_NS] = NEVER_NS
            return
        source = key >> _SOURCE_SHIFT
        size = _grow(slots[slot, SIZE], growth[source, GROW_INCREMENT], factor[source])
        _add_row(rows, counts, due, key, slot, _REALLOC, size)
        slots[slot, SIZE] = size
        slots[slot, STEPS] -= 1
        due = min(due + growth[source, GROW_SPACING_NS], end) if slots[slot, STEPS] > 0 else end
    _put_into_wheel(slots, heads, counts, slot, due)


@leaf
def _busy_ns(elapsed_ns: int, busy_ns: int, idle_ns: int) -> int:
    """Returns the busy part of the time since the start."""
    return elapsed_ns // (busy_ns + idle_ns) * busy_ns + min(elapsed_ns % (busy_ns + idle_ns), busy_ns)


@leaf
def _arrival_ns(state: np.ndarray, pace: np.ndarray, traits: np.ndarray) -> int:
    """Returns the time of the next tick at the current rate."""
    if pace[RATE] <= 0.0:
        return NEVER_NS
    wait = (pace[TICK] - pace[ANCHOR_TICK]) * 1e9 / pace[RATE]
    if wait >= 4e18:
        return NEVER_NS
    anchor, busy, idle = state[ANCHOR_NS], traits[BUSY_NS], traits[IDLE_NS]
    if idle == 0:
        return anchor + max(int(wait), 0)
    start = traits[START_NS]
    elapsed = _busy_ns(anchor - start, busy, idle) + int(wait)
    return max(start + elapsed // busy * (busy + idle) + elapsed % busy, anchor)


@leaf
def _begin_ticks(state: np.ndarray, pace: np.ndarray, traits: np.ndarray) -> None:
    """Sets the first tick: at the start if ticks are regular, else after a random gap."""
    state[NEXT_TICK] = 0
    if traits[POISSON] == 1:
        pace[TICK] = -log(random_part(traits[GAP_KEY], traits[GAP_STRIDE], 0))


@leaf
def _begin_burst(state: np.ndarray, pace: np.ndarray, traits: np.ndarray, burst: Law) -> None:
    """Draws the number of blocks of a burst, and sets the tick of the next burst."""
    tick = state[NEXT_TICK]
    state[BURST_REMAINING] = draw(burst, tick, 0)
    state[BURSTS] += 1
    state[NEXT_TICK] = tick + 1
    gap = 1.0
    if traits[POISSON] == 1:
        gap = -log(random_part(traits[GAP_KEY], traits[GAP_STRIDE], tick + 1))
    pace[TICK] += gap


@leaf
def _new_slot(idle: np.ndarray, counts: np.ndarray) -> int:
    if counts[SLOTS_IDLE] > 0:
        counts[SLOTS_IDLE] -= 1
        return idle[counts[SLOTS_IDLE]]
    counts[SLOTS_USED] += 1
    return counts[SLOTS_USED] - 1


@leaf
def _new_member(members: np.ndarray, traits: np.ndarray, block: int, slot: int) -> tuple[int, int]:
    """Returns the member of the set that a block becomes, and the slot of the block that it replaces, or NONE."""
    high, _low = random_words(traits[VICTIM_KEY], traits[VICTIM_STRIDE], block)
    member = block if block < traits[MEMBERS] else (high * traits[MEMBERS]) >> 32
    member += traits[FIRST_MEMBER]
    replaced = members[member]
    members[member] = slot
    return member, replaced


@entry
def change_rate(source: SourceArrays, now_ns: int, rate: float) -> None:
    """Sets the rate of a source (ticks per second) from `now_ns` on. Changes the source in place."""
    state, pace, traits = source.state, source.pace, source.traits
    anchor = state[ANCHOR_NS]
    if now_ns > anchor:
        passed = now_ns - anchor
        if traits[IDLE_NS] > 0:
            start, busy, idle = traits[START_NS], traits[BUSY_NS], traits[IDLE_NS]
            passed = _busy_ns(now_ns - start, busy, idle) - _busy_ns(anchor - start, busy, idle)
        pace[ANCHOR_TICK] += passed * pace[RATE] / 1e9
        state[ANCHOR_NS] = now_ns
    pace[RATE] = rate


@entry
def fill_window(stage: Stage, source: SourceArrays, until_ns: int) -> int:
    """Adds the allocations of a source before `until_ns` to the window. Changes everything in place.

    Returns a FULL status before a block for which a table may be too small.
    """
    slots, idle, members, heads = stage.slots, stage.idle, stage.members, stage.heads
    growth, factor, rows, counts = stage.growth, stage.factor, stage.rows, stage.counts
    state, pace, traits, threads, sizes, lifetimes, bursts = source
    if state[NEXT_TICK] < 0:
        _begin_ticks(state, pace, traits)
    index = traits[INDEX]
    steps, spacing_ns = growth[index, GROW_STEPS], growth[index, GROW_SPACING_NS]
    room, last_ns = rows.shape[0] - steps - 3, min(until_ns, traits[STOP_NS])
    while True:
        time_ns = state[BURST_NS]
        if state[BURST_REMAINING] <= 0:
            time_ns = max(time_ns, _arrival_ns(state, pace, traits))
        if time_ns >= last_ns:
            return DONE
        if counts[ROWS] > room:
            return FULL_WINDOW
        if counts[SLOTS_IDLE] == 0 and counts[SLOTS_USED] == slots.shape[0]:
            return FULL_SLOTS
        if state[BURST_REMAINING] <= 0:
            _begin_burst(state, pace, traits, bursts)
            if state[BURST_REMAINING] == 0:
                continue
        block, slot = state[NEXT_BLOCK], _new_slot(idle, counts)
        state[NEXT_BLOCK] += 1
        state[BURST_REMAINING] -= 1
        state[BURST_NS] = time_ns + traits[SPACING_NS]
        key = (index << _SOURCE_SHIFT) | (block << 1)
        size = draw(sizes, block, time_ns)
        end_ns = min(time_ns + draw(lifetimes, block, time_ns), NEVER_NS)
        live = slots[slot]
        live[KEY], live[SIZE], live[END_NS], live[STEPS], live[MEMBER] = key, size, end_ns, steps, NONE
        live[THREAD] = threads[(state[BURSTS] - 1) % threads.shape[0]]
        live[DUE_NS] = min(time_ns + spacing_ns, end_ns) if steps > 0 else end_ns
        _add_row(rows, counts, time_ns, key, slot, traits[OP], size)
        if traits[MEMBERS] > 0:
            live[MEMBER], replaced = _new_member(members, traits, block, slot)
            if replaced != NONE:
                _add_row(rows, counts, time_ns, key | 1, replaced, _FREE, 0)
        _add_events(slots, heads, rows, counts, growth, factor, slot, until_ns)


@entry
def move_due(stage: Stage, from_ns: int, until_ns: int) -> int:
    """Moves the events that are due before `until_ns` from the wheel to the window. Changes both in place.

    Can return FULL_WINDOW; another call with a larger window continues.
    """
    slots, heads, rows, counts = stage.slots, stage.heads, stage.rows, stage.counts
    first, last = from_ns >> counts[WHEEL_SHIFT], (until_ns - 1) >> counts[WHEEL_SHIFT]
    buckets, room = heads.shape[0], rows.shape[0] - counts[STEPS_MOST] - 3
    for turn in range(first, min(last, first + buckets - 1) + 1):
        bucket = turn & (buckets - 1)
        slot = heads[bucket]
        heads[bucket] = NONE
        full = False
        while slot != NONE:
            following = slots[slot, CHAIN]
            full = counts[ROWS] > room
            if full:
                _put_into_wheel(slots, heads, counts, slot, slots[slot, DUE_NS])
            else:
                _add_events(slots, heads, rows, counts, stage.growth, stage.factor, slot, until_ns)
            slot = following
        if full:
            return FULL_WINDOW
    return DONE


@entry
def free_groups(stage: Stage, fractions: np.ndarray, keys: np.ndarray, now_ns: int) -> int:
    """Frees the share `fractions[source]` of the live blocks of each source at `now_ns`. Rebuilds the wheel.

    The draw for a block uses its source's row of `keys` and its own number. The window needs a row for every slot.
    """
    slots, rows, heads, counts, members = stage.slots, stage.rows, stage.heads, stage.counts, stage.members
    if rows.shape[0] < counts[ROWS] + counts[SLOTS_USED]:
        return FULL_WINDOW
    heads[:] = NONE
    for slot in range(counts[SLOTS_USED]):
        key = slots[slot, KEY]
        if key == NONE:
            continue
        source, block = key >> _SOURCE_SHIFT, (key & _BLOCK) >> 1
        if random_part(keys[source, 0], keys[source, 1], block) < fractions[source]:
            _add_row(rows, counts, now_ns, key | 1, slot, _FREE, 0)
            slots[slot, DUE_NS] = NEVER_NS
            if slots[slot, MEMBER] != NONE:
                members[slots[slot, MEMBER]] = NONE
        else:
            _put_into_wheel(slots, heads, counts, slot, slots[slot, DUE_NS])
    return DONE


@entry
def move_blocks(stage: Stage, thread: int, heir: int) -> None:
    """Moves the live blocks of a thread to the thread `heir`, in place."""
    slots = stage.slots
    for slot in range(stage.counts[SLOTS_USED]):
        if slots[slot, KEY] != NONE and slots[slot, THREAD] == thread:
            slots[slot, THREAD] = heir


@entry
def write_window(
    stage: Stage,
    from_ns: int,
    until_ns: int,
    first_row: int,
    time_ns: np.ndarray,
    thread: np.ndarray,
    op: np.ndarray,
    domain: np.ndarray,
    block: np.ndarray,
    size: np.ndarray,
) -> None:
    """Writes the sorted events of the window into the columns, from `first_row` on, and empties the window.

    All times are from `from_ns` to before `until_ns`. Numbers new blocks, and releases slots of freed ones.
    """
    slots, idle, numbers, number_counts = stage.slots, stage.idle, stage.numbers, stage.number_counts
    growth, rows, order, counts = stage.growth, stage.rows, stage.order, stage.counts
    sort_rows(rows, counts[ROWS], order, stage.spare, stage.starts, from_ns, until_ns)
    for i in range(counts[ROWS]):
        row, to = order[i], first_row + i
        code, slot = rows[row, ROW_OP], rows[row, ROW_SLOT]
        time_ns[to] = rows[row, ROW_TIME_NS]
        op[to] = code
        size[to] = rows[row, ROW_SIZE]
        thread[to], domain[to], block[to] = 0, 0, 0
        if code == _THREAD_END:
            thread[to], size[to] = rows[row, ROW_SIZE], 0
        if code in (_MARK, _THREAD_END):
            continue
        if code < _REALLOC:
            slots[slot, BLOCK] = take_number(numbers, number_counts)
        thread[to] = slots[slot, THREAD]
        domain[to] = growth[slots[slot, KEY] >> _SOURCE_SHIFT, DOMAIN]
        block[to] = slots[slot, BLOCK]
        if code == _FREE:
            release_number(numbers, number_counts, slots[slot, BLOCK])
            slots[slot, KEY] = NONE
            idle[counts[SLOTS_IDLE]] = slot
            counts[SLOTS_IDLE] += 1
    counts[ROWS] = 0
