"""The live blocks at the end of the program, before the interpreter's teardown."""

import numpy as np

from replay.trace import TEARDOWN_MARK, Events, Metadata, Op
from replay.trace.validation import Validator


class ProgramEnd:
    """Counts the live blocks at the last mark of teardown, the moment at which `replay run` reports its end too."""

    def __init__(self, metadata: Metadata) -> None:
        self._marks = [number for number, name in enumerate(metadata.phases) if name == TEARDOWN_MARK]
        if metadata.processes:  # they end at different moments
            self._marks = []
        self._validator = Validator()
        self.live: tuple[int, int] | None = None
        """Blocks and bytes; None without such a mark."""

    def follow(self, events: Events) -> None:
        """Processes the next batch of the trace."""
        if not self._marks:
            return
        start = 0
        for row in np.flatnonzero((events.op == Op.MARK) & np.isin(events.size, self._marks)).tolist():
            self._validator.check(events.where(slice(start, row)))
            start, self.live = row, (self._validator.live_blocks, self._validator.live_bytes)
        self._validator.check(events.where(slice(start, None)))
