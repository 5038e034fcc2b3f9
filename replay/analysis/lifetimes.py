"""How long the blocks of a trace live: a histogram by decade. It depends on the trace alone."""

import numpy as np
import polars as pl

from replay.jit.arrays import record, with_room
from replay.jit.compiling import entry
from replay.trace import Trace
from replay.trace.block_ops import FREE, allocates, requests

_LIVE = record("since_ns", "bytes", is_live=np.bool_)
_DECADES = 10 ** np.arange(3, 12)  # 1 µs to 100 s
_COUNT = record("blocks", "bytes")


@entry
def _count(
    op: np.ndarray, block: np.ndarray, size: np.ndarray, time_ns: np.ndarray, decades: np.ndarray,
    live: np.ndarray, counts: np.ndarray,
) -> None:  # fmt: skip
    """Adds the blocks that a batch frees to `counts`, by the decade of their age. Changes the last two in place."""
    for row in range(op.shape[0]):
        kind = op[row]
        if not (requests(kind) or kind == FREE):
            continue
        one = live[np.uint64(block[row])]
        if kind == FREE:
            decade = 0
            while decade < decades.shape[0] and time_ns[row] - one.since_ns >= decades[decade]:
                decade += 1
            counts[decade].blocks += 1
            counts[decade].bytes += one.bytes
            one.is_live = False
            continue
        if allocates(kind):
            one.since_ns, one.is_live = time_ns[row], True
        one.bytes = size[row]


def block_lifetimes(trace: Trace) -> pl.DataFrame:
    """Returns a row for each decade of lifetimes with blocks: `least_ns`, `below_ns`, `blocks`, `requested_bytes`.

    `below_ns` is null for the longest lifetimes. In the last row, both are null: blocks that are never freed. A realloc
    changes a block's size, not its lifetime.
    """
    live, counts = np.zeros(1024, _LIVE), np.zeros(len(_DECADES) + 1, _COUNT)
    for events in trace.batches():
        live = with_room(live, events.highest_block + 1)
        _count(events.op, events.block, events.size, events.time_ns, _DECADES, live, counts)
    lasting = live[live["is_live"]]
    frame = pl.DataFrame(
        {
            "least_ns": [0, *_DECADES.tolist(), None],
            "below_ns": [*_DECADES.tolist(), None, None],
            "blocks": [*counts["blocks"].tolist(), len(lasting)],
            "requested_bytes": [*counts["bytes"].tolist(), int(lasting["bytes"].sum())],
        }
    )
    return frame.filter(pl.col("blocks") > 0)
