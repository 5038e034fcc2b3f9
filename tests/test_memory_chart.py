"""The chart of memory over time: every column and line of it is a figure of the run."""

import io
from operator import itemgetter

import numpy as np
from histories import History
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from replay.config import load_config
from replay.reports.console import PlainConsole
from replay.reports.memory_chart import _SIZES, _TIMES, UNKNOWN, Axis, bars, highest_in_columns, memory_chart
from replay.simulation.run import run
from replay.trace import Domain, Op

STACK = load_config("bump")
MIB = 1 << 20


def lines_of(trace, width, stack=STACK, **options):
    return [line.plain for line in memory_chart(run(trace, stack, **options), width)]


def growing():
    """1 MiB at 0 s, 2 MiB from 2 s on, 1 MiB live from 3 s on, until 4 s; `bump` never releases memory."""
    history = History()
    history.mark(0)
    history.malloc(MIB, Domain.RAW)
    second = history.at(2 * 10**9).malloc(MIB, Domain.RAW)
    history.mark(op=Op.GC_START, phase=1)
    history.mark(op=Op.GC_END)
    history.at(3 * 10**9).free(second)
    history.mark(1)
    history.at(4 * 10**9).malloc(16, Domain.RAW)
    return history.trace("load", "serve the requests")


def test_heights_times_phases_and_collections_are_those_of_the_run():
    assert lines_of(growing(), 60) == [
        " 2.5 MiB▔",
        "                                                  ▁ resident",
        "   2 MiB▔                     ███████████▔▔▔▔▔▔▔▔▔",
        "                              ███████████",
        " 1.5 MiB▔                     ███████████",
        "                              ███████████         ▁ live",
        "   1 MiB▔██████████████████████████████████████████",
        "         ██████████████████████████████████████████",
        " 0.5 MiB▔██████████████████████████████████████████",
        "         ██████████████████████████████████████████",
        "       0" + "▔" * 43,
        "    time ╵0        ╵1 s       ╵2 s      ╵3 s      ╵4 s",
        " gc gen.                      1",
        "  phases ╵load                          ╵serve the requests",
    ]


def test_a_narrow_console_shortens_names_and_a_narrower_one_has_no_chart():
    assert lines_of(growing(), 34)[-3:] == [
        "    time ╵0  ╵   ╵   ╵  ╵4 s",
        " gc gen.         1",
        "  phases ╵load       ╵serve the …",
    ]
    assert lines_of(growing(), 33) == []


def test_the_chart_is_as_wide_as_the_console_up_to_a_limit():
    for width in (34, 80, 120, 300):
        assert max(map(len, lines_of(growing(), width))) == min(width, 178)


def test_a_run_of_one_moment_or_without_memory_has_no_chart():
    history = History()
    history.malloc(100)
    assert lines_of(history.trace(), 80) == []
    assert lines_of(History().trace(), 80) == []


def test_a_peak_between_two_samples_is_in_the_chart():
    history = History()
    history.malloc(MIB, Domain.RAW)
    history.at(1_000).free(history.at(1_000).malloc(4 * MIB, Domain.RAW))
    history.at(10**9).malloc(16, Domain.RAW)
    lines = lines_of(history.trace(), 60, load_config("cpython-3.12"), sample_every_ns=10**9)
    assert lines[0].startswith("   6 MiB▔")
    assert [line[9:10] for line in lines[:9]] == ["", "▄", "█", "█", "█", "█", "█", "█", "█"]
    assert {line[10:50].strip() for line in lines[:9]} == {""}  # unknown until the first sample


def test_names_at_one_height_are_one_below_the_other():
    history = History()
    history.malloc(MIB, Domain.RAW)
    history.at(10).malloc(16, Domain.RAW)
    lines = lines_of(history.trace(), 60)
    assert [line[51:] for line in lines[2:5]] == [" resident", " live", ""]


def test_phases_that_are_too_many_are_left_out():
    history = History()
    for number in range(20):
        history.at(number * 10**6).mark(number)
        history.malloc(1_000, Domain.RAW)
    trace = history.trace(*map(str, range(20)))
    assert "phases" not in lines_of(trace, 80)[-1]
    assert "╵19" in lines_of(trace, 160)[-1]


def test_wide_characters_in_names_take_two_columns():
    history = History()
    history.mark(0)
    history.malloc(1_000, Domain.RAW)
    history.at(5 * 10**8).mark(1)
    history.at(10**9).malloc(16, Domain.RAW)
    line = lines_of(history.trace("読み込み" * 9, "end"), 60)[-1]
    shown, _, rest = line.partition("╵end")
    assert (cell_len(shown), rest) == (9 + 21, "")
    assert shown.startswith("  phases ╵読み込み")
    assert shown.rstrip().endswith("…")


def test_colours_change_no_character():
    result = run(growing(), STACK)
    shown = []
    for settings in ({"force_terminal": True, "no_color": True}, {"force_terminal": False}):
        console = PlainConsole(width=80, file=io.StringIO(), **settings)
        for line in memory_chart(result, 80):
            console.print(line)
        shown.append(console.file.getvalue())
    assert "\x1b[36m" not in shown[0]
    assert [line.plain for line in memory_chart(result, 80)] == shown[1].splitlines()


@given(st.floats(1, 1e15), st.sampled_from([_SIZES, _TIMES]))
def test_an_axis_ends_at_the_first_tick_that_is_not_below_the_highest_value(highest, units):
    axis = Axis.up_to(highest, units)
    assert 1 <= axis.ticks <= 5
    assert axis.at(axis.ticks - 1) < highest <= axis.at(axis.ticks) * (1 + 1e-12)


@given(st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 10**12)), min_size=1), st.integers(1, 60))
def test_a_column_has_the_highest_value_of_its_time(samples, columns):
    samples.sort(key=itemgetter(0))
    times, values = np.array(samples).T
    heights = highest_in_columns(times, values, 1_000, columns)
    known, places = UNKNOWN, [min(time * columns // 1_000, columns - 1) for time, _ in samples]
    for column in range(columns):
        mine = [value for place, (_, value) in zip(places, samples, strict=True) if place == column]
        assert heights[column] == (max(mine) if mine else known if column < places[-1] else UNKNOWN)
        known = mine[-1] if mine else known


def test_bars_are_rounded_up_to_eighths():
    assert bars(np.array([UNKNOWN, 0, 1, 8, 9, 63, 64]), 64) == "  ▁▁▂██"
