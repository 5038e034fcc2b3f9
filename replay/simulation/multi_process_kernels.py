"""Stints: rows of one process without rows of another in between. How they are simulated and added up.

Each process has its own stack, and simulates its stints of a piece of the trace one after the other. The counters
after each stint are written down, and afterwards added up in the order of the trace. During a stint of one process all
others rest, so the sum of a level at any moment, within an event too, is the level of that process plus the constant
levels of the others. The peak of the sum in a stint follows from the peak of its process in that stint. The simulator
counts peaks since the beginning; so before each stint they are lowered to the current levels.

    moment      the counters of a process after a stint; its peaks are those of the stint
    best        the same right after the event that took its resident memory to the stint's highest, if it ever rose

Counters are rows of int64 here. `ends` of their `Layout` says which fields are levels, peaks, sums, maxima, and pairs
of words; the peak of a level is as many fields behind it as there are levels. The others are the simulator's own.
"""

import numpy as np

from replay.allocators import LEVELS
from replay.jit.compiling import entry, leaf
from replay.jit.cpu_intrinsics import add_product
from replay.simulation.loop import simulate_rows

_RESIDENT = LEVELS.index("resident_bytes")

leaf(simulate_rows)


@leaf
def lower_peaks(counters, levels):
    """Sets the peaks of this number of levels to the levels, in place."""
    for level in range(levels):
        counters[levels + level] = counters[level]


def simulate_stints(
    stack, blocks, classes, route, at_peak, columns, first_row, threads, addresses,
    no_times, counters, levels, mine, ends, stint, row, moments, best,
):  # fmt: skip
    """Simulates the stints of the numbers `mine`, in place; the first arguments are those of `simulate_rows`.

    `no_times` are those of its ticks, at which no time passes. `counters` is the tally of `stack` as a row of int64,
    which begins with so many `levels`.

    Stint n of the piece ends at row ends[n + 1], and begins where the one before ends. Begins with mine[stint] at
    `row`, or at its beginning where that is less. Stops early where `simulate_rows` does. Returns where to go on.
    """
    while stint < mine.shape[0]:
        number = mine[stint]
        if row <= ends[number]:
            row = ends[number]
            lower_peaks(counters, levels)
        row, taken = simulate_rows(
            stack, blocks, classes, route, at_peak, columns, first_row, row, threads,
            ends[number + 1 : number + 2], no_times, moments[number : number + 1], addresses,
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
    for field in range(counters.shape[0]):
        into[field] = counters[field]


@leaf
def _raise_peaks(counters, before, levels):
    """Replaces the peaks of a stint by those since the beginning."""
    for peak in range(levels, 2 * levels):
        counters[peak] = max(counters[peak], before[peak])


@leaf
def _replace(total, before, now, into, ends):
    """Writes into `into` the sum in which a process has `now` what it had `before`; peaks are of the sum as well."""
    levels, peaks, sums, maxima, pairs = ends[0], ends[1], ends[2], ends[3], ends[4]
    for level in range(levels):
        into[levels + level] = max(total[levels + level], total[level] - before[level] + now[levels + level])
    for field in range(levels):
        into[field] = total[field] + now[field] - before[field]
    for field in range(peaks, sums):
        into[field] = total[field] + now[field] - before[field]
    for field in range(sums, maxima):
        into[field] = max(total[field], now[field])
    for field in range(maxima, pairs, 2):
        low, high = _add_words(total[field], total[field + 1], now[field], now[field + 1], 1)
        low, high = _add_words(low, high, before[field], before[field + 1], -1)
        into[field], into[field + 1] = low, high
    for field in range(pairs, now.shape[0]):
        into[field] = now[field]


@leaf
def _add_words(low, high, other_low, other_high, sign):
    """The sum, or with a sign of -1 the difference, of two 128-bit integers in two words each."""
    carried = other_high + (1 if other_low < 0 else 0)  # a product takes the low word as a signed one
    return add_product(low, high + sign * carried, other_low, sign)


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
    ends: np.ndarray,
) -> None:
    """Goes through stints in order; from `last` on everything but `ticks` changes in place.

    `owner` has the process of each stint. `with_best` is False where `best` is not filled in.
    By process: `last` its counters so far, `own_best` those at its own highest resident memory, `shares` those at the
    highest of all: of a process whose `seen` is less than `times`, which counts how often that rose, they are its last.
    `sums`: of all now, and at the highest resident memory of all. samples[i] becomes the sum before stint ticks[i].
    `ends` is the layout's.
    """
    total, at_peak, levels = sums[0], sums[1], ends[0]
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
        highest = now[levels + _RESIDENT]
        if with_best and highest > before[levels + _RESIDENT]:
            _copy(best[stint], own_best[process])
            _raise_peaks(own_best[process], before, levels)
        if with_best and total[_RESIDENT] - before[_RESIDENT] + highest > total[levels + _RESIDENT]:
            _replace(total, before, best[stint], at_peak, ends)
            times[0] += 1
            _copy(best[stint], shares[process])
            _raise_peaks(shares[process], before, levels)
            seen[process] = times[0]
        _replace(total, before, now, total, ends)
        _raise_peaks(now, before, levels)
        _copy(now, before)
