"""Memory over time as lines of text: live and resident bytes above an axis of time, phases and collections below it.

    █ ▁ … ▇   live bytes, to an eighth of a line
    ▁ ─ ▔     resident bytes, to a third of a line, unless live bytes reach that line

A column shows the highest values in its time. The axis of bytes starts at 0; its ticks are at the top of their lines.
Without colours the chart is the same.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from replay.analysis import frames
from replay.simulation.result import RunResult
from replay.support.names import printable

UNKNOWN = -1
"""The height of a column before the first sample."""
_BARS = " ▁▂▃▄▅▆▇█"
_LINES = "▁─▔"
_TICKS = 5
"""The largest number of ticks of an axis, besides 0."""
_COLUMNS_MIN, _COLUMNS_MAX = 16, 160
_COLUMNS_A_PHASE = 6
"""Phases are shown if they have so many columns each."""
_LEVELS = ("requested_bytes", "resident_bytes")
_STYLES = {"live": "cyan", "resident": "bold"}
_BESIDE = 1 + max(map(len, _STYLES))
"""Columns for the names right of the chart."""
_SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
_TIMES = (("s", 10**9), ("ms", 10**6), ("µs", 10**3), ("ns", 1))


class Axis(NamedTuple):
    """Ticks at the multiples of `step`, in a unit of `unit_size` bytes or nanoseconds."""

    unit: str
    unit_size: int
    step: float
    ticks: int
    """The number of ticks after 0: the last one is not below the highest value."""

    @classmethod
    def up_to(cls, highest: float, units: Sequence[tuple[str, int]]) -> "Axis":
        """Returns the axis with the shortest step of 1, 2 or 5 times a power of 10 that needs at most _TICKS ticks."""
        unit, unit_size = next((each for each in units if highest >= each[1]), units[-1])
        steps = (digit * 10.0**power for power in range(-1, 20) for digit in (1, 2, 5))
        step = next(step for step in steps if highest <= _TICKS * step * unit_size)
        return cls(unit, unit_size, step, max(1, int(np.ceil(highest / (step * unit_size)))))

    def label(self, tick: int) -> str:
        """Returns the text beside a tick: `1.5 MiB`."""
        return f"{tick * self.step:,.10g} {self.unit}" if tick else "0"

    def at(self, tick: int) -> float:
        """Returns the value at a tick, in bytes or nanoseconds."""
        return tick * self.step * self.unit_size


def highest_in_columns(times_ns: np.ndarray, values: np.ndarray, span_ns: int, columns: int) -> np.ndarray:
    """Returns the highest value in each of `columns` equal parts of the time from 0 to `span_ns`; times are in order.

    A part without a sample has the last value before it; UNKNOWN before the first sample and after the last one.
    """
    places = column_of(times_ns, span_ns, columns)
    heights, latest = np.full((2, columns), UNKNOWN, np.int64)
    np.maximum.at(heights, places, values)
    latest[places] = values
    for column in range(1, int(places.max(initial=-1)) + 1):
        if heights[column] == UNKNOWN:
            heights[column] = latest[column] = latest[column - 1]
    return heights


def column_of(time_ns: Any, span_ns: int, columns: int) -> Any:
    """Returns the column of a time, or of each time of an array."""
    return np.minimum(time_ns * columns // max(span_ns, 1), columns - 1).astype(np.int64)


def bars(heights: np.ndarray, highest: int) -> str:
    """Returns a line of bars, rounded up to eighths of `highest`."""
    eighths = -(-np.maximum(heights, 0) * (len(_BARS) - 1) // max(highest, 1))
    return "".join(_BARS[eighth] for eighth in eighths.tolist())


class Plot(NamedTuple):
    """The place of a chart: its axis of bytes, its span of time and its columns."""

    axis: Axis
    span_ns: int
    margin: int
    columns: int

    @classmethod
    def of(cls, highest: int, span_ns: int, width: int) -> "Plot | None":
        """Returns the plot for values up to `highest`; None without a span or values, or in a narrow console."""
        axis = Axis.up_to(highest, _SIZES)
        margin = max(len("gc gen."), *(len(axis.label(tick)) for tick in range(axis.ticks + 1))) + 1
        columns = min(width - margin - 1 - _BESIDE, _COLUMNS_MAX)
        return cls(axis, span_ns, margin, columns) if span_ns and highest and columns >= _COLUMNS_MIN else None

    def column_of(self, time_ns: float) -> int:
        """Returns the column of a time."""
        return int(column_of(time_ns, self.span_ns, self.columns))

    def levels(self, live: np.ndarray, resident: np.ndarray) -> Iterator[Text]:
        """Yields the lines of the chart down to its axis of time. Arguments: the bytes in each column."""
        lines_a_tick = 3 if self.axis.ticks <= 3 else 2
        heights = [each / (self.axis.at(1) / lines_a_tick) for each in (live, resident)]
        latest = [float(each[each >= 0][-1]) if (each >= 0).any() else 0.0 for each in heights]
        names = _names(latest[0], latest[1], self.axis.ticks * lines_a_tick)
        for line in reversed(range(self.axis.ticks * lines_a_tick)):
            tick, rest = divmod(line + 1, lines_a_tick)
            start = f"{'' if rest else self.axis.label(tick):>{self.margin}}{' ' if rest else '▔'}"
            text = Text(start, style="dim").append_text(_cells(line, *heights))
            if line in names:
                text.append(f" {names[line]}", _STYLES[names[line]])
            text.rstrip()
            yield text
        yield Text(f"{'0':>{self.margin}}{'▔' * (self.columns + 1)}", style="dim")

    def below(self, name: str, text: str) -> Text:
        """Returns a line below the chart."""
        return Text(f"{name:>{self.margin}} {text}".rstrip(), style="dim")

    def marks(self, name: str, marks: Sequence[tuple[float, str]]) -> Text:
        """Returns a line below the chart with texts at their times."""
        return self.below(name, _placed([(self.column_of(at), text) for at, text in marks], self.columns + _BESIDE))

    def times(self) -> Text:
        """Returns the labels of the axis of time."""
        axis = Axis.up_to(self.span_ns, _TIMES)
        ticks = [tick for tick in range(axis.ticks + 1) if axis.at(tick) <= self.span_ns]
        return self.marks("time", [(axis.at(tick), axis.label(tick)) for tick in ticks])


def memory_chart(result: RunResult, width: int) -> Iterator[Text]:
    """Yields the lines of the chart. Yields none for a run without duration or memory, or in a narrow console."""
    times_ns, live, resident = _levels(result)
    highest = max(int(live.max(initial=0)), int(resident.max(initial=0)), int(result.at_peak.resident_bytes))
    plot = Plot.of(highest, result.duration_ns, width)
    if plot is None:
        return
    heights = [highest_in_columns(times_ns, level, plot.span_ns, plot.columns) for level in (live, resident)]
    at = plot.column_of(result.at_peak_time_ns)
    for each, level in zip(heights, _LEVELS, strict=True):  # the peak lasts a moment; so no other column has it
        each[at] = max(each[at], result.at_peak[level])
    yield from plot.levels(*heights)
    yield plot.times()
    collections = frames.collections(result)
    if len(collections):
        yield _generations(plot, collections)
    phases = [(time_ns, printable(name)) for name, time_ns, _ in result.phases if time_ns <= plot.span_ns]
    if phases and len(phases) * _COLUMNS_A_PHASE <= plot.columns:
        yield plot.marks("phases", phases)


def _generations(plot: Plot, collections: pl.DataFrame) -> Text:
    """Returns a line with the highest generation that was collected in each column; a dot where it is unknown."""
    found: dict[int, str] = {}
    for time_ns, generation in collections.select("time_ns", "generation").rows():
        column, text = plot.column_of(time_ns), "·" if generation is None else str(generation)
        found[column] = max(found.get(column, ""), text)
    name = "gc" if collections["generation"].null_count() else "gc gen."
    return plot.below(name, "".join(found.get(column, " ") for column in range(plot.columns)))


def _levels(result: RunResult) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns times, requested and resident bytes at samples and at starts of phases, in order of time."""
    phases = [(time_ns, tally) for _, time_ns, tally in result.phases if time_ns <= result.duration_ns]
    times_ns = np.append(result.sample_times_ns, [time_ns for time_ns, _ in phases]).astype(np.int64)
    order = np.argsort(times_ns, kind="stable")
    live, resident = (
        np.append(result.samples[level], [tally[level] for _, tally in phases])[order].astype(np.int64)
        for level in _LEVELS
    )
    return times_ns[order], live, resident


def _cells(line: int, live: np.ndarray, resident: np.ndarray) -> Text:
    """Returns a line of the chart; the heights of all columns are in lines."""
    text = Text()
    for below, above in zip((live - line).tolist(), (resident - line).tolist(), strict=True):
        if below > 0:
            text.append(_BARS[min(max(round(8 * below), 1), 8)], _STYLES["live"])
        else:
            text.append(_LINES[min(int(3 * above), 2)] if 0 < above <= 1 else " ", _STYLES["resident"])
    return text


def _names(live: float, resident: float, lines: int) -> dict[int, str]:
    """Returns the names right of the chart by line, from the heights at the end. One name lies below the other."""
    low, high = (min(max(int(np.ceil(height)) - 1, 0), lines - 1) for height in (live, resident))
    if low == high:
        low, high = (low - 1, high) if low else (low, high + 1)
    return {low: "live", high: "resident"}


def _placed(texts: Sequence[tuple[int, str]], width: int) -> str:
    """Returns a line with a mark at the column of each text, and so much of the text as fits before the next mark."""
    line = ""
    for (column, text), (end, _) in zip(texts, [*texts[1:], (width, "")], strict=True):
        room = end - column - 2
        shown = text if cell_len(text) <= room else f"{set_cell_size(text, room - 1)}…" if room > 2 else ""
        if column >= cell_len(line):
            line += " " * (column - cell_len(line)) + f"╵{shown}"
    return line
