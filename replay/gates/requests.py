"""Which request of a trace gave each live block its size."""

import numpy as np

from replay.jit.arrays import with_room
from replay.trace import Events
from replay.trace.block_ops import concerns_block


class LastRequests:
    """The latest request of each block, batch by batch. Requests are numbered from 0 in the order of the trace."""

    def __init__(self) -> None:
        self._last = np.full(1024, -1, np.int64)
        """By block number; -1 where no block is live, or its size is of none of the requests."""
        self.count = 0
        """Requests so far."""

    def follow(self, events: Events, is_request: np.ndarray, reached: int) -> None:
        """Follows events after those before. `is_request` marks the rows that are requests; all of them are numbered,
        but blocks are followed in the first `reached` rows only."""
        moves = np.flatnonzero(concerns_block(events.op[: max(0, reached)]))
        if moves.size:
            numbers = self.count + np.cumsum(is_request) - 1
            self._last = with_room(self._last, int(events.block[moves].max()) + 1, fill=-1)
            self._last[events.block[moves]] = np.where(is_request[moves], numbers[moves], -1)
        self.count += int(np.count_nonzero(is_request))

    def of_live_blocks(self) -> np.ndarray:
        """The numbers of the requests that gave live blocks their sizes."""
        return self._last[self._last >= 0]
