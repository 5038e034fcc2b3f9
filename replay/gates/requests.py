"""Finds the last request (malloc, calloc or realloc) of each live block."""

import numpy as np

from replay.jit.arrays import with_room
from replay.trace import Events
from replay.trace.block_ops import concerns_block


class LastRequests:
    """The last request of each block. Requests are numbered from 0 in the order of the trace."""

    def __init__(self) -> None:
        self._last = np.full(1024, -1, np.int64)
        """By block number; -1 if the block is not live, or none of the counted requests sized it."""
        self.count = 0
        """Requests so far."""

    def follow(self, events: Events, is_request: np.ndarray, reached: int) -> None:
        """Processes the next batch. `is_request` has the rows that count as requests; all of them get numbers, but
        only the first `reached` rows of the batch change blocks."""
        moves = np.flatnonzero(concerns_block(events.op[: max(0, reached)]))
        if moves.size:
            numbers = self.count + np.cumsum(is_request) - 1
            self._last = with_room(self._last, int(events.block[moves].max()) + 1, fill=-1)
            self._last[events.block[moves]] = np.where(is_request[moves], numbers[moves], -1)
        self.count += int(np.count_nonzero(is_request))

    def of_live_blocks(self) -> np.ndarray:
        """Returns the numbers of the last requests of all live blocks."""
        return self._last[self._last >= 0]
