"""The address of every block of a run, for comparisons with a real allocator."""

import numpy as np

from replay.allocators import ARENA_MAPPED, LOG, record
from replay.config import StackConfig
from replay.simulation.run import run
from replay.trace import Trace

ARENA_EVENT = record("row", "kind", "address", "bytes")


def run_addresses(trace: Trace, config: StackConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns for each event the address, and 1 if pymalloc owns the block; and arena events (1: map, 0: unmap)."""
    addresses: list[np.ndarray] = [np.zeros(0, np.int64)]
    owners: list[np.ndarray] = [np.zeros(0, np.uint8)]
    logged: list[np.ndarray] = [np.zeros(0, LOG)]

    def keep(told: np.ndarray, owner: np.ndarray) -> None:
        addresses.append(told)
        owners.append(owner)

    run(trace, config, addresses=keep, log=logged.append)
    log = np.concatenate(logged)
    events = log[log["kind"] >= ARENA_MAPPED].astype(ARENA_EVENT)
    events["kind"] = events["kind"] == ARENA_MAPPED
    return np.concatenate(addresses), np.concatenate(owners), events
