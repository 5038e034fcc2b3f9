"""Sorts events by time and key: kernels.

Events are in random order but evenly distributed over the window. So they are put into about as many buckets by time as
there are events, and each bucket is sorted. That costs a fraction of a comparison sort. A bucket with many events at
one instant is sorted by merging, which is fast for nearly sorted events, such as those of a generation that is freed at
once.
"""

import numpy as np

from replay.jit.compiling import leaf

# the first two columns of the rows
ROW_TIME_NS, ROW_KEY = range(2)

_RUN = 16
"""Number of rows that are sorted by insertion before merging: two cache lines of `order`."""


@leaf
def _comes_before(rows: np.ndarray, a: int, b: int) -> bool:
    if rows[a, ROW_TIME_NS] != rows[b, ROW_TIME_NS]:
        return rows[a, ROW_TIME_NS] < rows[b, ROW_TIME_NS]
    return rows[a, ROW_KEY] < rows[b, ROW_KEY]


@leaf
def _insert_in_order(rows: np.ndarray, order: np.ndarray, low: int, high: int) -> None:
    """Sorts a short `order[low:high]` in place, by insertion."""
    for i in range(low + 1, high):
        row, j = order[i], i
        while j > low and _comes_before(rows, row, order[j - 1]):
            order[j] = order[j - 1]
            j -= 1
        order[j] = row


@leaf
def _merge(rows: np.ndarray, order: np.ndarray, spare: np.ndarray, low: int, middle: int, high: int) -> None:
    """Merges the sorted `order[low:middle]` and `order[middle:high]` in place; overwrites `spare[low:middle]`."""
    if not _comes_before(rows, order[middle], order[middle - 1]):
        return
    for i in range(low, middle):
        spare[i] = order[i]
    left, right, to = low, middle, low
    while left < middle and right < high:
        if _comes_before(rows, order[right], spare[left]):
            order[to] = order[right]
            right += 1
        else:
            order[to] = spare[left]
            left += 1
        to += 1
    while left < middle:
        order[to] = spare[left]
        left += 1
        to += 1


@leaf
def _sort_range(rows: np.ndarray, order: np.ndarray, spare: np.ndarray, low: int, high: int) -> None:
    """Sorts `order[low:high]` in place. One instant can have the events of a whole generation."""
    for start in range(low, high, _RUN):
        _insert_in_order(rows, order, start, min(start + _RUN, high))
    width = _RUN
    while width < high - low:
        for start in range(low, high - width, 2 * width):
            _merge(rows, order, spare, start, start + width, min(start + 2 * width, high))
        width *= 2


@leaf
def sort_rows(
    rows: np.ndarray, count: int, order: np.ndarray, spare: np.ndarray, starts: np.ndarray, from_ns: int, until_ns: int
) -> None:
    """Writes the numbers of the first `count` rows, sorted by time and key, into `order`.

    All times are from `from_ns` to before `until_ns`. `order` and `spare` are at least as long as the rows, `starts` is
    three longer; their contents are overwritten.
    """
    shift = 0
    while (until_ns - from_ns) >> shift > count:
        shift += 1
    buckets = ((until_ns - from_ns) >> shift) + 1
    for bucket in range(buckets + 1):
        starts[bucket] = 0
    for row in range(count):
        starts[((rows[row, ROW_TIME_NS] - from_ns) >> shift) + 1] += 1
    for bucket in range(1, buckets):
        starts[bucket] += starts[bucket - 1]
    for row in range(count):
        bucket = (rows[row, ROW_TIME_NS] - from_ns) >> shift
        order[starts[bucket]] = row
        starts[bucket] += 1
    low = 0
    for bucket in range(buckets):
        high = starts[bucket]
        if high - low > 1:
            _sort_range(rows, order, spare, low, high)
        low = high
