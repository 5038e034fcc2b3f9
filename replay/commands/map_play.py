"""`replay map --play`: animates the heap map over a run, on a terminal."""

import time
from typing import TYPE_CHECKING

from replay.commands.compilation import report_compilation
from replay.commands.run_plan import RunPlan, source_in_errors
from replay.support.errors import ReplayError

if TYPE_CHECKING:
    from rich.text import Text

FRAMES, FRAMES_A_SECOND = 240, 24
_LEGEND = 3
"""Lines below the map."""


def play_map(plan: RunPlan) -> None:
    """Simulates a run, and then shows the map at FRAMES moments of it. The cells have the size that fits its peak."""
    from rich.live import Live
    from rich.text import Text

    from replay.reports.console import PlainConsole

    if plan.trace.metadata.processes:
        raise ReplayError(f"--play {plan.source}: has several processes; leave --play out to see the map of each")
    with report_compilation(), source_in_errors(plan.source):
        frames = _frames(plan)
    if not frames:
        raise ReplayError(f"--play {plan.source}: has one moment only; leave --play out to see its map")
    console = PlainConsole()
    height = max(console.height - _LEGEND - 1, 1)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for lines, below in frames:
            live.update(Text("\n", no_wrap=True, overflow="crop").join([*lines[:height], *below]), refresh=True)
            time.sleep(1 / FRAMES_A_SECOND)


def _frames(plan: RunPlan) -> "list[tuple[list[Text], list[Text]]]":
    """Returns the lines of the map and of its legend at FRAMES moments that are equally far apart."""
    from rich.text import Text

    from replay.analysis.heap_map import regions
    from replay.analysis.moments import Memory, memory_at
    from replay.reports.heap_map import Scale, legend, map_lines, summary_line
    from replay.simulation.run import NO_SAMPLES_NS, run
    from replay.simulation.snapshots import PEAK, Snapshot
    from replay.support.units import format_time

    (peak,) = memory_at(plan.trace, plan.stack, PEAK)
    scale = Scale.of(regions(peak.spans), full=False, page_bytes=peak.page_bytes)
    duration_ns = run(plan.trace, plan.stack, sample_every_ns=NO_SAMPLES_NS).duration_ns
    frames = []

    def sink(snapshot: Snapshot) -> None:
        if snapshot.time_ns > duration_ns:  # the interpreter's teardown
            return
        memory = Memory.of(snapshot)
        times = f"{format_time(memory.at_ns)} of {format_time(duration_ns)}"
        header = Text.assemble((f"{plan.title}  ", "bold"), f"{times}  ").append_text(summary_line(memory))
        lines = [line for each in map_lines(memory, scale, fold=False) for line in each.split("\n")]
        frames.append(([header, *lines], [Text(""), *legend(memory, scale)]))

    every_ns = max(duration_ns // FRAMES, 1)
    run(plan.trace, plan.stack, sample_every_ns=NO_SAMPLES_NS, snapshots=every_ns, sink=sink)
    return frames
