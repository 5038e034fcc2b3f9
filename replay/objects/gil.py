"""The global interpreter lock as a SimPy resource: one thread holds it, and the others queue for it.

CPython's rule: a thread that has waited for the switch interval without a change of the holder requests that the holder
drops the GIL. The holder does so at its next check, and queues again. Calls that block drop it at once.

The operating system decides which of several waiting threads gets the GIL. Here it is the one that has waited longest.
"""

from collections.abc import Generator
from typing import Any

import simpy

FOREVER_NS = 1 << 62


def now_ns(environment: simpy.Environment) -> int:
    """Returns the simulated time."""
    return int(environment.now)


class Gil:
    """The GIL of an interpreter. A thread is any object."""

    def __init__(self, environment: simpy.Environment, interval_ns: int) -> None:
        self._environment, self._interval_ns = environment, interval_ns
        self._resource = simpy.Resource(environment)
        self._since_ns: dict[Any, int] = {}
        """By request of a waiting thread, since when it waits."""
        self._held: Any = None
        """The request of the holder."""
        self._last: object = None
        self._changed_ns = 0
        """When a thread took the GIL that was not the last one that had it."""

    def take(self, thread: object) -> Generator[simpy.Event, Any, int]:
        """Waits until the thread holds the GIL; returns for how long."""
        begin_ns, request = now_ns(self._environment), self._resource.request()
        self._since_ns[request] = begin_ns
        yield request
        del self._since_ns[request]
        self._held = request
        if self._last is not thread:
            self._last, self._changed_ns = thread, now_ns(self._environment)
        return now_ns(self._environment) - begin_ns

    def drop(self) -> None:
        """Passes the GIL to the thread that has waited longest."""
        self._resource.release(self._held)

    def requested_ns(self) -> int:
        """Returns from when on the holder is requested to drop the GIL, if no other thread comes."""
        return min(map(self._request_ns, self._since_ns.values()), default=FOREVER_NS)

    def _request_ns(self, since_ns: int) -> int:
        """Returns the end of the first whole interval of a waiting thread in which the holder was the same."""
        passed = max(0, -((since_ns - self._changed_ns) // self._interval_ns))
        return since_ns + (passed + 1) * self._interval_ns
