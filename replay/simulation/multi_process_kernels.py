"""Stints: rows of one process with none of another's among them. How they are played, and what they add up to.

Each process has a stack of its own, and plays its stints of a piece of the trace one after the other; the others'
come before or after. What each stint came to is written down, and afterwards all are gone through in the order of the
trace. While a process is in a stint, all others rest, so the sum of a level at any moment, within an event too, is
what the process has then and what the others have all the time. The highest in a stint is therefore known from the
highest of its process in that stint alone. The simulator counts peaks since the beginning; so before each stint they
are lowered to the current levels.

    moment      the counters of a process after a stint; its peaks are those of the stint
    best        the same right after the event that took its resident memory to the stint's highest, if it ever rose

Counters are rows of int64 here, as in TALLY: levels, peaks, what else adds up, and `OWN` fields of the simulator.
"""

import numpy as np

from replay.allocators import LEVELS, OWN, TALLY
from replay.jit.compiling import entry, leaf
from replay.simulation.loop import simulate_rows

FIELDS = len(TALLY.names or ())
PEAKS = len(LEVELS)
"""A level's peak is so many fields behind it; what adds up goes on after the peaks."""
assert (TALLY.names or ())[PEAKS : 2 * PEAKS] == tuple(f"{name}_peak" for name in LEVELS)
_ADDED = FIELDS - len(OWN)
"""Fields below it, but for peaks, add up."""
_RESIDENT = LEVELS.index("resident_bytes")

leaf(simulate_rows)


@leaf
def lower_peaks(tally):
    """The highest since the beginning is forgotten."""
    tally.requested_bytes_peak = tally.requested_bytes
    tally.block_bytes_peak = tally.block_bytes
    tally.pool_bytes_peak = tally.pool_bytes
    tally.arena_bytes_peak = tally.arena_bytes
    tally.heap_bytes_peak = tally.heap_bytes
    tally.mapped_bytes_peak = tally.mapped_bytes
    tally.resident_bytes_peak = tally.resident_bytes
    tally.arenas_peak = tally.arenas


def simulate_stints(
    stack, blocks, classes, route, at_peak, columns, first_row, threads, addresses,
    mine, ends, stint, row, moments, best,
):  # fmt: skip
    """Plays the stints of the numbers `mine`, in place; all arguments before it are those of `simulate_rows`.

    Stint n of the piece ends at row ends[n + 1], and begins where the one before ends. Begins with mine[stint] at
    `row`, or at its beginning where that is less. Stops early where `simulate_rows` does. Returns where to go on.
    """
    tally = stack.tally[0]
    while stint < mine.shape[0]:
        number = mine[stint]
        if row <= ends[number]:
            row = ends[number]
            lower_peaks(tally)
        row, taken = simulate_rows(
            stack, blocks, classes, route, at_peak, columns, first_row, row, threads,
            ends[number + 1 : number + 2], moments[number : number + 1], addresses,
        )  # fmt: skip
        if taken == 0:
            return stint, row
        if at_peak[0].row >= first_row + ends[number]:
            best[number] = at_peak[0]
        stint += 1
        row = 0
    return stint, row


@leaf
def _copy(counters, into):
    for field in range(FIELDS):
        into[field] = counters[field]


@leaf
def _raise_peaks(counters, before):
    """Peaks of a stint become those since the beginning."""
    for peak in range(PEAKS, 2 * PEAKS):
        counters[peak] = max(counters[peak], before[peak])


@leaf
def _replace(total, before, now, into):
    """Writes into `into` the sum in which a process has `now` what it had `before`; peaks are of the sum as well."""
    for level in range(PEAKS):
        into[PEAKS + level] = max(total[PEAKS + level], total[level] - before[level] + now[PEAKS + level])
    for field in range(FIELDS):
        if field >= _ADDED:
            into[field] = now[field]
        elif field < PEAKS or field >= 2 * PEAKS:
            into[field] = total[field] + now[field] - before[field]


@entry
def add_up(
    owner: np.ndarray,
    moments: np.ndarray,
    best: np.ndarray,
    with_best: bool,
    last: np.ndarray,
    own_best: np.ndarray,
    shares: np.ndarray,
    seen: np.ndarray,
    sums: np.ndarray,
    times: np.ndarray,
    ticks: np.ndarray,
    samples: np.ndarray,
) -> None:
    """Goes through stints in order; from `last` on everything but `ticks` changes in place.

    `owner` has the process of each stint. `with_best` is False where nobody looked for the highest resident memory.
    By process: `last` its counters so far, `own_best` those at its own highest resident memory, `shares` those at the
    highest of all: of a process whose `seen` is less than `times`, which counts how often that rose, they are its last.
    `sums`: of all now, and at the highest resident memory of all. samples[i] becomes the sum before stint ticks[i].
    """
    total, at_peak = sums[0], sums[1]
    tick = 0
    for stint in range(owner.shape[0]):
        while tick < ticks.shape[0] and ticks[tick] <= stint:
            _copy(total, samples[tick])
            tick += 1
        process, now = owner[stint], moments[stint]
        before = last[process]
        if seen[process] < times[0]:
            _copy(before, shares[process])
            seen[process] = times[0]
        highest = now[PEAKS + _RESIDENT]
        if with_best and highest > before[PEAKS + _RESIDENT]:
            _copy(best[stint], own_best[process])
            _raise_peaks(own_best[process], before)
        if with_best and total[_RESIDENT] - before[_RESIDENT] + highest > total[PEAKS + _RESIDENT]:
            _replace(total, before, best[stint], at_peak)
            times[0] += 1
            _copy(best[stint], shares[process])
            _raise_peaks(shares[process], before)
            seen[process] = times[0]
        _replace(total, before, now, total)
        _raise_peaks(now, before)
        _copy(now, before)
