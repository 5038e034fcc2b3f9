"""Shows a simulation while it runs: a chart that grows, how fast it is, and how long it will take."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from replay.reports.memory_chart import Plot, highest_in_columns
from replay.support.names import printable
from replay.support.units import format_size, format_time

_REDRAWN_S = 0.25
_BARS = 24


class Watch:
    """The display of one run on a terminal. It vanishes at the end of the block."""

    def __init__(self, console: Console, title: str, events: int | None, duration_ns: int | None) -> None:
        """`events`: rows of all simulations together. Both are None if they are unknown."""
        self._console, self._title, self._events, self._duration_ns = console, title, events, duration_ns
        self._levels: list[tuple[int, int, int]] = []
        self._rows, self._started_s, self._drawn_s = 0, time.monotonic(), 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Watch":
        self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def watch(self, rows: int, time_ns: int, counters: np.record) -> None:
        """Remembers the levels of the run; `run` calls it."""
        self._levels.append((time_ns, int(counters.requested_bytes), int(counters.resident_bytes)))

    def progress(self, rows: int) -> None:
        """Draws the display again, if it is old. `rows`: rows simulated so far."""
        self._rows, now_s = rows, time.monotonic()
        if now_s - self._drawn_s >= _REDRAWN_S:
            self._drawn_s = now_s
            self._live.update(Group(*self.lines(now_s - self._started_s, self._console.width)), refresh=True)

    def lines(self, elapsed_s: float, width: int) -> Iterator[Text]:
        """Yields the lines of the display after so many seconds."""
        yield Text(printable(self._title), style="bold")
        yield Text(self._speed(elapsed_s))
        if not self._levels:
            return
        times_ns, live, resident = np.array(self._levels, np.int64).T
        now_ns, span_ns = int(times_ns[-1]), max(self._duration_ns or 0, int(times_ns[-1]))
        sizes = f"{format_size(int(live[-1]))} live, {format_size(int(resident[-1]))} resident"
        yield Text(f"at {format_time(now_ns)} of {format_time(span_ns)}: {sizes}")
        if plot := Plot.of(int(max(live.max(), resident.max())), span_ns, width):
            yield Text("")
            heights = [highest_in_columns(times_ns, each, span_ns, plot.columns) for each in (live, resident)]
            yield from plot.levels(*heights)
            yield plot.times()

    def _speed(self, elapsed_s: float) -> str:
        """Returns events, events a second, and the time left."""
        speed = self._rows / elapsed_s if elapsed_s > 0 else 0.0
        text = f"{self._rows:,} events"
        if not self._events:
            return f"{text}, {speed:,.0f} events/s"
        done = min(self._rows / self._events, 1.0)
        bar = "█" * round(_BARS * done) + "─" * (_BARS - round(_BARS * done))
        left = f", {(self._events - self._rows) / speed:.0f} s left" if speed else ""
        return f"{bar} {100 * done:.0f} %  {text} of {self._events:,}, {speed:,.0f} events/s{left}"
