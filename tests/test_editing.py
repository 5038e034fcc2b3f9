"""`replay trace cut`, `filter`, `merge` and `scale`: small traces computed by hand, and properties of all traces."""

from fractions import Fraction

import numpy as np
import pytest
from conftest import event_rows, output_of
from histories import History, cut, histories
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from replay.__main__ import app
from replay.sources import open_source
from replay.sources.parquet import write_trace
from replay.support.errors import ReplayError
from replay.support.limits import MAX_SPAN
from replay.trace import NO_SITE, Domain, MemoryTrace, Metadata, Op, ProcessMemory, Provenance, Site, trace_digest
from replay.trace.editing import span_ns
from replay.trace.editing.cutting import Piece
from replay.trace.editing.cutting import cut as cut_trace
from replay.trace.editing.merging import Part, merged
from replay.trace.editing.scaling import copied, repeated, stretched
from replay.trace.editing.selecting import Conditions, FilteredTrace


def rows(trace):
    return event_rows(trace, "time_ns", "op", "block", "size")


def column(trace, name):
    return [value for events in trace.batches() for value in getattr(events, name).tolist()]


def small():
    """Phases load from 0 and serve from 30 on: 0 is live from 10 to 60, 1 from 20 to 40 and reallocated, 2 from 50
    on."""
    history = History()
    history.at(100).mark(0)
    first = history.at(110).malloc(100)
    second = history.at(120).malloc(16, Domain.RAW, Op.CALLOC)
    history.at(125).realloc(second, 48)
    history.at(130).mark(1)
    history.at(140).free(second)
    history.at(150).malloc(7)
    history.at(160).free(first)
    return history.trace("load", "serve")


def test_a_piece_allocates_earlier_blocks_in_order_of_allocation_with_their_size():
    piece = cut_trace(small(), Piece(26, 51), "")
    assert rows(piece) == [
        (130, "malloc", 0, 100),
        (130, "malloc", 1, 48),
        (130, "mark", 0, 1),
        (140, "free", 1, 0),
        (150, "malloc", 1, 7),
    ]
    assert column(piece, "domain")[:2] == [Domain.OBJ, Domain.RAW]
    assert trace_digest(piece)[:16] == "0ad55639799883d4"


def test_a_piece_within_a_phase_marks_it_again_after_the_earlier_blocks():
    assert rows(cut_trace(small(), Piece(20, 30), "")) == [
        (120, "malloc", 0, 100),
        (120, "mark", 0, 0),
        (120, "calloc", 1, 16),
        (125, "realloc", 1, 48),
    ]


def test_a_piece_without_earlier_blocks_leaves_out_all_that_happens_to_them():
    assert rows(cut_trace(small(), Piece(26, earlier=False), "")) == [(130, "mark", 0, 1), (150, "malloc", 0, 7)]


def test_a_phase_lasts_from_its_mark_to_the_next_of_another():
    assert rows(cut_trace(small(), Piece(phase="load"), "")) == rows(cut_trace(small(), Piece(0, 30), ""))
    assert rows(cut_trace(small(), Piece(phase="serve"), "")) == rows(cut_trace(small(), Piece(30), ""))
    assert rows(cut_trace(small(), Piece(45, phase="serve", earlier=False), "")) == [
        (150, "mark", 0, 1),
        (150, "malloc", 0, 7),
    ]


def test_malloc_trim_ends_no_phase():
    history = History()
    history.mark(0)
    history.mark(1)
    history.malloc(5)
    trace = MemoryTrace([history.events()], Metadata(phases=("load", "malloc_trim")))
    assert len(rows(cut_trace(trace, Piece(phase="load"), ""))) == 3


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (Piece(phase="sreve"), "unknown phase 'sreve'; did you mean 'serve'"),
        (Piece(1000), "this piece of the trace has no events"),
        (Piece(0, 10, phase="serve"), "this piece of the trace has no events"),
        (Piece(20, 20), "this piece of the trace has no events"),
    ],
)
def test_a_piece_without_events_is_refused(piece, message):
    with pytest.raises(ReplayError, match=message):
        rows(cut_trace(small(), piece, ""))


@pytest.mark.parametrize(
    ("conditions", "sizes"),
    [
        (Conditions(), [100, 16, 48, 0, 7, 0]),
        (Conditions(domain=Domain.RAW), [16, 48, 0]),
        (Conditions(thread=1), []),
        (Conditions(thread=0, min_size=16, max_size=99), [16, 48, 0]),
        (Conditions(phase="serve"), [7]),
        (Conditions(phase="load", max_size=16), [16, 48, 0]),
    ],
)
def test_a_filter_keeps_all_events_of_matching_blocks_and_all_marks(conditions, sizes):
    result = rows(FilteredTrace(small(), conditions, ""))
    assert [row[3] for row in result if row[1] != "mark"] == sizes
    assert [row for row in result if row[1] == "mark"] == [(100, "mark", 0, 0), (130, "mark", 0, 1)]


def test_a_filter_counts_the_blocks_it_keeps():
    kept = FilteredTrace(small(), Conditions(max_size=50), "")
    for _ in range(2):
        rows(kept)
        assert kept.blocks_kept == 2


def test_a_filter_without_matching_blocks_reports_it_and_writes_the_other_events(file, tmp_path):
    out = tmp_path / "out.parquet"
    result = CliRunner().invoke(app, ["trace", "filter", str(file), "-o", str(out), "--thread", "9"])
    assert result.exit_code == 0
    assert result.stderr.endswith(f"no block meets the conditions; {out} has only marks and garbage collections\n")
    assert result.stdout.startswith("2 events over 30 ns, 0 blocks")
    assert [row[1] for row in rows(open_source(out))] == ["mark", "mark"]
    result = CliRunner().invoke(app, ["trace", "filter", str(file), "-o", str(out), "--force", "--thread", "0"])
    assert "no block" not in result.stderr


def test_filtering_by_an_unknown_phase_is_refused():
    with pytest.raises(ReplayError, match="unknown phase 'lod'; did you mean 'load'"):
        rows(FilteredTrace(small(), Conditions(phase="lod"), ""))


def two(thread, site):
    """Blocks of 10 and 20 bytes at 5 and 9, the first freed at 9."""
    history = History()
    first = history.at(5).malloc(10)
    history.at(9).malloc(20)
    history.free(first)
    events = history.events()
    events = events._replace(
        thread=events.thread + np.uint32(thread), site=np.array([site, NO_SITE, NO_SITE], np.uint32)
    )
    metadata = Metadata(Provenance(interpreter="3.12", file=str(site)), (Site("f", "a.py", 1), Site("g", "a.py", 2)),
                        process=ProcessMemory(100, 10, 1))  # fmt: skip
    return MemoryTrace([events], metadata)


def test_traces_are_merged_by_time_with_separate_threads_blocks_and_sites():
    both = merged([Part(two(3, 1), "a"), Part(two(3, 0), "b", 4)], "merge a b")
    assert rows(both) == [
        (0, "malloc", 0, 10),
        (4, "malloc", 1, 20),
        (4, "free", 0, 0),
        (4, "malloc", 0, 10),
        (8, "malloc", 2, 20),
        (8, "free", 0, 0),
    ]
    assert column(both, "thread") == [0, 0, 0, 1, 1, 1]
    assert column(both, "site") == [0, NO_SITE, NO_SITE, 1, NO_SITE, NO_SITE]
    assert both.metadata.sites == (Site("g", "a.py", 2), Site("f", "a.py", 1))
    assert both.metadata.process == ProcessMemory(100, 20, 2)
    assert both.metadata.origin.texts() == {"interpreter": "3.12", "edited": "merge a b"}
    assert trace_digest(both)[:16] == "565879d844650803"


def test_merged_phases_bear_the_names_of_their_traces():
    both = merged([Part(small(), "a"), Part(small(), "b", 1)], "")
    assert [row[3] for row in rows(both) if row[1] == "mark"] == [0, 1, 2, 3]
    assert both.metadata.phases == ("a: load", "b: load", "a: serve", "b: serve")


def test_a_repetition_frees_live_blocks_before_the_next_begins():
    history = History()
    history.at(100).malloc(5)
    history.at(103).malloc(6)
    trace = history.trace()
    assert rows(repeated(trace, 2, "", keep_live=False)) == [
        (100, "malloc", 0, 5), (103, "malloc", 1, 6),
        (103, "free", 0, 0), (103, "free", 1, 0),
        (103, "malloc", 1, 5), (106, "malloc", 0, 6),
    ]  # fmt: skip
    assert rows(repeated(trace, 2, "", keep_live=True))[2:] == [(103, "malloc", 2, 5), (106, "malloc", 3, 6)]


def test_blocks_of_an_ended_thread_are_allocated_and_freed_by_the_main_thread():
    history = History()
    history.at(100).malloc(1)
    history.by(5).malloc(2)
    history.by(6).malloc(3)
    history.by(5).end_thread()
    history.by(6).end_thread()
    history.at(110).by(6).malloc(4)  # another thread of that number
    trace = history.at(120).by(0).trace()
    piece = cut_trace(trace, Piece(5), "")
    assert list(zip(column(piece, "size"), column(piece, "thread"), strict=True))[:3] == [(1, 0), (2, 0), (3, 0)]
    history.at(120).malloc(5)
    piece = cut_trace(history.trace(), Piece(15), "")
    assert list(zip(column(piece, "size"), column(piece, "thread"), strict=True)) == [
        (1, 0), (2, 0), (3, 6), (4, 6), (5, 0),
    ]  # fmt: skip
    twice = repeated(history.trace(), 2, "", keep_live=False)
    freed = [thread for op, thread in zip(column(twice, "op"), column(twice, "thread"), strict=True) if op == Op.FREE]
    assert freed == [0, 0, 6, 6, 0]


def test_the_main_thread_is_that_of_the_first_block_not_of_the_first_row():
    history = History()
    history.by(9).mark(op=Op.GC_START)
    history.by(8).end_thread()
    history.by(7).malloc(1)
    history.by(5).malloc(2)
    history.by(5).end_thread()
    history.at(9).by(9).malloc(3)
    for cuts in ([], [1], [2], [1, 2, 3]):
        piece = cut_trace(MemoryTrace(cut(history.events(), cuts)), Piece(9), "")
        assert list(zip(column(piece, "size"), column(piece, "thread"), strict=True)) == [(1, 7), (2, 7), (3, 9)]


def test_a_thread_number_that_is_reused_is_followed_across_batches():
    history = History()
    history.malloc(1)
    history.by(5).malloc(2)
    history.by(5).end_thread()
    history.by(5).malloc(3)
    history.by(5).end_thread()
    history.at(9).by(0).malloc(4)
    for at in range(1, 6):
        piece = cut_trace(MemoryTrace(cut(history.events(), [at])), Piece(9), "")
        assert column(piece, "thread") == [0, 0, 0, 0]


def test_a_trace_that_would_last_too_long_is_refused():
    latest = MAX_SPAN - 60  # the small trace lasts 60 ns
    assert column(merged([Part(small(), "", latest)], ""), "time_ns")[-1] == MAX_SPAN
    for parts in ([Part(small(), "", latest + 1)], [Part(small(), "a"), Part(small(), "b", latest + 1)]):
        with pytest.raises(ReplayError, match="more than thirty years; take a smaller offset"):
            rows(merged(parts, ""))
    with pytest.raises(ReplayError, match="more than thirty years; take a smaller offset"):
        rows(copied([small(), small()], latest + 1, ""))


def test_copies_begin_one_after_the_other_as_workers_of_their_own():
    trace = copied([small(), small()], 30, "")
    assert [row[0] for row in rows(trace)] == sorted([time_ns + shift for time_ns in column(small(), "time_ns")
                                                      for shift in (-100, -70)])  # fmt: skip
    assert set(column(trace, "thread")) == {0, 1}
    assert trace.metadata.phases == ("load", "serve", "copy 1: load", "copy 1: serve")


def test_times_are_stretched_since_the_first_event():
    assert column(stretched(small(), Fraction(1, 2), ""), "time_ns") == [100, 105, 110, 112, 115, 120, 125, 130]
    assert column(stretched(small(), Fraction(3), ""), "time_ns")[-1] == 280
    with pytest.raises(ReplayError, match="it must be above 0"):
        stretched(small(), Fraction(0), "")


def live(trace):
    """Returns the sizes of live blocks at the end."""
    sizes = {}
    for _, op, block, size in rows(trace):
        if op == "free":
            del sizes[block]
        elif op in ("malloc", "calloc", "realloc"):
            sizes[block] = size
    return sorted(sizes.values())


@settings(max_examples=60, deadline=None)
@given(histories(), st.integers(0, 60), st.booleans())
def test_pieces_before_and_after_a_time_fit_together(history, at_ns, earlier):
    trace = history.trace()
    if at_ns == 0 or at_ns > span_ns(trace):
        return
    before, after = cut_trace(trace, Piece(0, at_ns), ""), cut_trace(trace, Piece(at_ns, earlier=earlier), "")
    sizes = [row[3] for row in rows(after)][: len(live(before))] if earlier else []
    assert sorted(sizes) == (live(before) if earlier else [])
    if earlier:
        assert live(after) == live(trace)
        assert len(rows(before)) + len(rows(after)) == len(rows(trace)) + len(live(before))


@settings(max_examples=60, deadline=None)
@given(histories(), st.lists(st.integers(1, 59)), st.data())
def test_every_edit_gives_a_valid_trace_wherever_batches_are_cut(history, cuts, data):
    whole, parts = history.trace(), MemoryTrace(cut(history.events(), cuts))
    edit = data.draw(
        st.sampled_from(
            [
                lambda trace: cut_trace(trace, Piece(span_ns(trace) // 3, MAX_SPAN), ""),
                lambda trace: cut_trace(trace, Piece(span_ns(trace) // 3, MAX_SPAN, earlier=False), ""),
                lambda trace: FilteredTrace(trace, Conditions(domain=Domain.OBJ, min_size=16), ""),
                lambda trace: merged([Part(trace, "a"), Part(whole, "b", 3), Part(trace, "c")], ""),
                lambda trace: repeated(trace, 3, "", keep_live=False),
                lambda trace: repeated(stretched(trace, Fraction(2, 3), ""), 2, "", keep_live=True),
                lambda trace: copied([trace, trace, trace], 2, ""),
            ]
        )
    )
    assert rows(edit(parts)) == rows(edit(whole))
    assert column(edit(parts), "thread") == column(edit(whole), "thread")


@settings(max_examples=40, deadline=None)
@given(histories(), st.integers(1, 4))
def test_a_repeated_trace_ends_as_it_began(history, times):
    trace = history.trace()
    longer = repeated(trace, times, "", keep_live=False)
    assert live(longer) == live(trace)
    assert span_ns(longer) == times * span_ns(trace)
    assert live(repeated(trace, times, "", keep_live=True)) == sorted(live(trace) * times)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.parquet"
    write_trace(MemoryTrace(small().events, Metadata(Provenance(seed=1), phases=("load", "serve"))), path)
    return path


def run(*arguments):
    return output_of("trace", *arguments).splitlines()


@pytest.mark.parametrize(
    ("words", "events", "edited"),
    [
        (["cut", "FILE", "--from", "26ns", "--to", "51ns"], 5, "cut t.parquet --from 26ns --to 51ns"),
        (["cut", "FILE", "--phase", "serve", "--without-earlier"], 2, "cut t.parquet --phase serve --without-earlier"),
        (
            ["filter", "FILE", "--domain", "raw", "--min-size", "16 B"],
            5,
            "filter t.parquet --domain raw --min-size 16 B",
        ),
        (["merge", "FILE", "FILE", "--offset", "1us"], 16, "merge t.parquet t.parquet --offset 1us"),
        (["scale", "FILE", "--repeat", "2", "--keep-live"], 16, "scale t.parquet --repeat 2 --keep-live"),
        (
            ["scale", "FILE", "--copies", "2", "--time-factor", "0.5"],
            16,
            "scale t.parquet --copies 2 --time-factor 0.5",
        ),
    ],
)
def test_the_commands_write_the_edited_trace_and_its_origin(file, tmp_path, words, events, edited):
    out = tmp_path / "out.parquet"
    lines = run(*[file if word == "FILE" else word for word in words], "-o", out)
    assert lines[0].startswith(f"{events} events over ")
    assert lines[-1] == f"next: replay run {out}"
    origin = open_source(out).metadata.origin.texts()
    assert (origin["edited"], origin["seed"]) == (edited, "1")
    with pytest.raises(ReplayError, match="already exists"):
        run(*[file if word == "FILE" else word for word in words], "-o", out)
    run(*[file if word == "FILE" else word for word in words], "-o", out, "--force")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cut", "FILE", "--from", "soon"], "--from: 'soon' is not a time; write it like 20 ms"),
        (["cut", "nowhere.parquet"], "the file does not exist"),
        (["filter", "FILE", "--domain", "row"], "--domain: unknown domain 'row'; did you mean 'raw'"),
        (["filter", "FILE", "--max-size", "x"], "--max-size: 'x' is not a size"),
        (
            ["merge", "FILE", "--offset", "1s", "--offset", "2s"],
            "--offset: 2 start times for 1 traces",
        ),
        (["scale", "FILE", "--time-factor", "fast"], "--time-factor: 'fast' is not a number; write it like 0.5"),
        (["scale", "FILE", "--time-factor", "nan"], "--time-factor: 'nan' is not a number"),
        (["scale", "FILE", "--time-factor", "1e30"], "is not between 0.000000001 and 1000000000"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence_and_nothing_is_written(file, tmp_path, words, message):
    with pytest.raises(ReplayError, match=message) as caught:
        run(*[file if word == "FILE" else word for word in words], "-o", tmp_path / "out.parquet")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_edits_of_edits_tell_all_of_their_history(file, tmp_path):
    run("cut", file, "-o", tmp_path / "a.parquet", "--from", "26ns")
    run("scale", tmp_path / "a.parquet", "-o", tmp_path / "b.parquet", "--repeat", "2")
    assert open_source(tmp_path / "b.parquet").metadata.origin.texts()["edited"] == (
        "cut t.parquet --from 26ns; scale a.parquet --repeat 2"
    )
