"""`replay run --watch`: the display has the levels of the run, and changes no result."""

import io
import json

import numpy as np
from histories import History, seeded

from replay.allocators import LEVELS
from replay.config import load_config
from replay.reports.console import PlainConsole
from replay.reports.watching import Watch
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.trace import Domain, MemoryTrace

MIB = 1 << 20


def batches(trace, rows):
    """The trace in batches of so many rows."""
    (events,) = trace.events
    parts = [events.where(slice(at, at + rows)) for at in range(0, events.rows, rows)]
    return MemoryTrace(parts, trace.metadata)


def test_the_display_has_levels_speed_and_time_left():
    history = History()
    history.at(500).malloc(MIB, Domain.RAW)
    history.at(1_500).malloc(MIB, Domain.RAW)
    watch = Watch(PlainConsole(file=io.StringIO()), "app on bump", 8, 4_000)
    run(batches(history.trace(), 1), load_config("bump"), watch=watch.watch)
    watch.progress(2)
    assert [line.plain for line in watch.lines(0.5, 60)] == [
        "app on bump",
        "██████────────────────── 25 %  2 events of 8, 4 events/s, 2 s left",
        "at 1.00 µs of 4.00 µs: 2.00 MiB live, 2.00 MiB resident",
        "",
        "   2 MiB▔          █                                resident",
        "                   █                                live",
        " 1.5 MiB▔          █",
        "                   █",
        "   1 MiB▔███████████",
        "         ███████████",
        " 0.5 MiB▔███████████",
        "         ███████████",
        "       0" + "▔" * 43,
        "    time ╵0        ╵1 µs      ╵2 µs     ╵3 µs     ╵4 µs",
    ]


def test_watching_changes_no_result_and_sees_the_counters_after_each_slice():
    trace, stack, seen = batches(seeded(5, 3_000).trace(), 500), load_config("cpython-3.12"), []

    def watch(rows, time_ns, counters):
        seen.append((rows, time_ns, int(counters.requested_bytes)))

    watched, plain = run(trace, stack, watch=watch), run(trace, stack)
    assert watched.end == plain.end
    assert np.array_equal(watched.samples, plain.samples)
    assert [rows for rows, _, _ in seen if rows % 500 == 0] == [500, 1_000, 1_500, 2_000, 2_500, 3_000]
    assert seen[-1] == (3_000, plain.duration_ns, int(plain.end.requested_bytes))
    assert {level: int(plain.end[level]) for level in LEVELS}["requested_bytes"] == seen[-1][2]


def test_a_simulation_of_unknown_length_shows_what_is_known():
    watch = Watch(PlainConsole(file=io.StringIO()), "log", None, None)
    assert [line.plain for line in watch.lines(2.0, 80)] == ["log", "0 events, 0 events/s"]


def test_without_a_terminal_the_option_is_ignored_with_a_note(replay, tmp_path):
    path = tmp_path / "trace.parquet"
    write_trace(seeded(1, 200).trace(), path)
    code, out, err = replay("run", path, "--no-reference", "--json", "--watch")
    assert code == 0
    assert "note: --watch needs a terminal, so it is ignored" in err
    assert json.loads(out)["events"] == 200
