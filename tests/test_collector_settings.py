"""Recordings under other settings of the collector: recorded collections are computed exactly, and the resident peak
under other settings is that of the program when it runs so.

pytest -m slow tests/test_collector_settings.py      runs programs of `benchmarks/collector_settings.py`
"""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import record
from test_record_python import AT_HAND

from replay.recorder import tap as taps
from replay.sources import open_source
from replay.support.errors import ConfigError, ReplayError
from replay.trace import (
    NO_TYPE,
    Collector,
    Events,
    MemoryTrace,
    Metadata,
    ObjectType,
    Op,
    Provenance,
)
from replay.trace.editing.collecting import CollectedTrace, CollectorSettings, Moments
from replay.trace.editing.garbage_ages import likely_ages

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SESSIONS = (BENCHMARKS / "collector_programs" / "sessions.py").read_text(encoding="utf-8").replace("110_000", "20_000")
SESSIONS = re.sub(r"(import stage\n|stage\.reach\(.*\)\n)", "", SESSIONS)


needs_recorder = pytest.mark.skipif(taps.obstacle(types=True) is not None, reason="cannot be recorded")


@needs_recorder
@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("name", ["sessions", "peers", "failures"])
def test_the_peak_under_other_settings_is_that_of_the_program(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module("collector_settings")
    _, predictions = benchmark.compare(name, sys.executable, 1, tmp_path)
    assert predictions.keys() == benchmark.SETTINGS.keys()
    assert {setting: each for setting, each in predictions.items() if abs(each.error) > 0.03} == {}


@needs_recorder
@pytest.mark.system
@pytest.mark.parametrize("version", AT_HAND)
def test_recorded_settings_result_in_the_recorded_events(tmp_path, version):
    (tmp_path / "program.py").write_text(SESSIONS)
    record("--types", "--python", AT_HAND[version], "program.py", cwd=tmp_path, check=True)
    trace = open_source(tmp_path / "trace.parquet")
    collected = CollectedTrace(trace, CollectorSettings(), "")
    for before, after in zip(whole(trace), whole(collected), strict=True):
        assert np.array_equal(before, after)
    assert collected.recorded == collected.ran > 100


def whole(trace):
    """Op, size and block of all events; generations of collections are sizes."""
    batches = list(trace.batches())
    return [np.concatenate([getattr(batch, name) for batch in batches]) for name in ("op", "size", "block", "time_ns")]


# Histories by hand: objects of 64 bytes, garbage in pairs.

MALLOC, FREE, START, END, MARK = Op.MALLOC, Op.FREE, Op.GC_START, Op.GC_END, Op.MARK


NODE, TUPLE = ObjectType("m", "Node", True), ObjectType("builtins", "tuple", True)


def history(rows, thresholds=(2, 10, 10), phases=(), kind=NODE):
    """A recording of rows (op, block, size), in which all blocks are objects of one type."""
    ops, blocks, sizes = (np.array(column) for column in zip(*rows, strict=True))
    events = Events(
        time_ns=np.arange(len(rows), dtype=np.int64),
        thread=np.zeros(len(rows), np.uint32),
        op=ops.astype(np.uint8),
        domain=np.full(len(rows), 2, np.uint8),
        block=blocks.astype(np.uint32),
        size=sizes.astype(np.int64),
        type=np.where((ops == FREE) | (ops == Op.LIVE_OBJECT), 0, NO_TYPE).astype(np.uint32),
    )
    collector = Collector(thresholds, True, (0, 0, 0), 0, 0)
    metadata = Metadata(Provenance(interpreter="cpython 3.11.7"), phases=phases, types=(kind,), collector=collector)
    return MemoryTrace([events], metadata)


def shown(trace):
    """The events as words: `+1` for an allocation of block 1, `-1` for a free, `(0` and `)` for a collection."""
    words = {
        MALLOC: "+{block}",
        FREE: "-{block}",
        START: "({size}",
        END: ")",
        MARK: "mark",
        Op.LIVE_OBJECT: "={block}",
        Op.REALLOC: "~{block}",
    }
    rows = [
        words[op].format(block=block, size=size)
        for batch in trace.batches()
        for op, block, size in zip(batch.op.tolist(), batch.block.tolist(), batch.size.tolist(), strict=True)
    ]
    return " ".join(rows)


def nodes(*numbers):
    return [(MALLOC, number, 64) for number in numbers]


def collection(generation, *freed):
    return [(START, 0, generation), *((FREE, number, 0) for number in freed), (END, 0, len(freed))]


PAIRS = [
    *nodes(0, 1, 2), *collection(0, 0, 1),
    *nodes(1, 0, 3), *collection(0, 1, 0),
    *nodes(0, 1, 4), *collection(0, 0, 1),
    *nodes(1, 0, 5), *collection(0, 1, 0),
    *((Op.LIVE_OBJECT, number, 1) for number in (2, 3, 4, 5)),
]  # fmt: skip
"""Three objects before each collection, of which it frees two."""


def test_recorded_settings_change_nothing():
    trace = history(PAIRS)
    assert shown(CollectedTrace(trace, CollectorSettings(), "")) == shown(trace)


def test_a_disabled_collector_frees_no_garbage():
    trace = CollectedTrace(history(PAIRS), CollectorSettings(enabled=False), "--set gc.enabled=false")
    assert shown(trace) == "+0 +1 +2 +3 +4 +5 +6 +7 +8 +9 +10 +11 =2 =5 =8 =11 =0 =1 =3 =4 =6 =7 =9 =10"
    assert (trace.recorded, trace.explicit, trace.ran) == (4, 0, 0)
    assert trace.metadata.origin.edited == "--set gc.enabled=false"


def test_a_higher_threshold_frees_garbage_at_the_next_collection():
    found = shown(CollectedTrace(history(PAIRS), CollectorSettings(threshold0=5), ""))
    assert found == "+0 +1 +2 +3 +4 +5 (0 -0 -1 -3 -4 ) +4 +3 +1 +0 +6 +7 (0 -4 -3 -0 -6 ) =2 =5 =1 =7"


@pytest.mark.parametrize("settings", [CollectorSettings(enabled=False), CollectorSettings(4), CollectorSettings(0)])
@pytest.mark.parametrize("kind", [NODE, TUPLE])
def test_all_blocks_keep_their_types(settings, kind):
    rows = [*PAIRS[:-4], (START, 0, 0), (END, 0, 3), *PAIRS[-4:]]  # what it found is in free lists of tuples
    trace, live, typed = CollectedTrace(history(rows, kind=kind), settings, ""), set(), set()
    for events in trace.batches():
        for op, block, type_ in zip(events.op.tolist(), events.block.tolist(), events.type.tolist(), strict=True):
            if op == MALLOC:
                live.add(block)
            elif op in (FREE, Op.LIVE_OBJECT):
                assert type_ == 0
                (live.remove if op == FREE else typed.add)(block)
    assert live == typed


def test_what_a_collection_put_into_a_free_list_is_allocated_without_it():
    rows = [
        *nodes(0, 1, 2), *collection(2, 0, 1),
        *nodes(0, 1, 3), (START, 0, 0), (END, 0, 3),  # found three objects and freed none
        *((Op.LIVE_OBJECT, number, 1) for number in (0, 1, 2, 3)),
    ]  # fmt: skip
    disabled = CollectorSettings(enabled=False)
    found = shown(CollectedTrace(history(rows, kind=TUPLE), disabled, ""))
    assert found == "+0 +1 +2 +3 +4 +5 +6 +7 +8 =3 =4 =2 =5 =0 =1 =6 =7 =8"
    assert shown(CollectedTrace(history(rows), disabled, "")) == "+0 +1 +2 +3 +4 +5 =3 =4 =2 =5 =0 =1"


def test_blocks_that_are_freed_earlier_did_not_go_into_a_free_list():
    rows = [
        *nodes(*range(60)), *collection(2, 0, 1), *nodes(0, *range(60, 119)), *collection(0, 0, 60),
        *((Op.LIVE_OBJECT, number, 1) for number in range(61, 119)),
    ]  # fmt: skip
    trace = CollectedTrace(
        history(rows, (59, 10, 10), kind=TUPLE), CollectorSettings(threshold0=19), "", Moments.EARLIEST
    )
    assert shown(trace).count("+") == 120


def test_the_age_of_garbage_is_that_of_the_likely_distribution():
    # Objects of one type that died at two ages: most in class 10, some in 90. Wide bounds say nothing themselves.
    alive, dead = np.array([0, 0, 80, 0]), np.array([12, 11, 95, 99])
    shares, scratch = np.zeros(100), np.zeros(101)
    likely_ages(alive, dead, np.array([50, 50, 20, 12]), shares, scratch)
    assert shares.sum() == pytest.approx(1)
    assert shares[:12].sum() == pytest.approx(100 / 120, rel=0.01)
    assert shares[80:96].sum() == pytest.approx(20 / 120, rel=0.01)


def test_explicit_collections_stay():
    rows = [*nodes(0, 1), *collection(2, 0), *nodes(0), (Op.LIVE_OBJECT, 0, 1), (Op.LIVE_OBJECT, 1, 1)]
    trace = CollectedTrace(history(rows), CollectorSettings(enabled=False), "")
    assert shown(trace) == "+0 +1 (2 -0 ) +0 =0 =1"
    assert (trace.recorded, trace.explicit, trace.ran) == (1, 1, 1)


def test_frozen_objects_are_never_freed_by_the_collector():
    rows = [*nodes(0, 1), (MARK, 0, 0), *nodes(2, 3, 4), *collection(0, 0, 1, 2, 3), (Op.LIVE_OBJECT, 4, 1)]
    trace = CollectedTrace(history(rows, (2, 10, 10), ("start",)), CollectorSettings(freeze_at="start"), "")
    assert "-0" not in shown(trace).split()
    assert "-1" not in shown(trace).split()
    assert {"-2", "-3"} <= set(shown(trace).split())


def test_garbage_of_an_older_generation_waits_for_its_collection():
    rows = [
        *nodes(0, 1, 2), *collection(0), *nodes(3, 4, 5), *collection(0),
        *nodes(6, 7, 8), *collection(1, 0, 1),
        *((Op.LIVE_OBJECT, number, 1) for number in range(2, 9)),
    ]  # fmt: skip
    recorded = history(rows, (2, 1, 10))
    assert shown(CollectedTrace(recorded, CollectorSettings(), "")) == shown(recorded)
    found = shown(CollectedTrace(recorded, CollectorSettings(threshold1=5), ""))
    assert found == "+0 +1 +2 (0 ) +3 +4 +5 (0 ) +6 +7 +8 (0 ) =2 =3 =4 =5 =6 =7 =8 =0 =1"


def test_more_frequent_collections_have_bounds():
    recorded = Collector((700, 10, 10), True, (0, 0, 0), 0, 0)
    frequent = [CollectorSettings(threshold0=300), CollectorSettings(threshold2=5)]
    rare = [CollectorSettings(), CollectorSettings(900, 10, 12), CollectorSettings(100, enabled=False)]
    assert [each.is_more_frequent(recorded) for each in (*frequent, *rare)] == [True, True, False, False, False]
    rows = [*nodes(*range(60)), *collection(0, 0, 1), *((Op.LIVE_OBJECT, number, 1) for number in range(2, 60))]
    trace = CollectedTrace(history(rows, (59, 10, 10)), CollectorSettings(threshold0=19), "")
    for moments, freed_at in ((Moments.EARLIEST, 0), (Moments.LATEST, None)):
        found = shown(trace.assuming(moments)).split()
        starts = [at for at, word in enumerate(found) if word == "(0"]
        assert len(starts) == 3
        frees = [at for at, word in enumerate(found) if word in ("-0", "-1")]
        # At the latest, they were promoted before the recording shows that they are garbage.
        assert frees == ([] if freed_at is None else [starts[freed_at] + 1, starts[freed_at] + 2])


def test_a_block_is_not_garbage_before_its_last_realloc():
    rows = [
        *nodes(*range(30)), (Op.REALLOC, 0, 96), *nodes(*range(30, 60)), *collection(0, 0, 1),
        *((Op.LIVE_OBJECT, number, 1) for number in range(2, 60)),
    ]  # fmt: skip
    trace = CollectedTrace(history(rows, (59, 10, 10)), CollectorSettings(threshold0=19), "", Moments.EARLIEST)
    found = shown(trace).split()
    first = found.index("(0")
    assert found[first : first + 3] == ["(0", "-1", ")"]
    assert "-0" not in found


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gc.threshold3=1", "unknown key 'threshold3'; did you mean 'threshold2'?"),
        ("gc.threshold0=many", "write it like gc.threshold0=50000"),
        ("gc.threshold0=-1", "write it like gc.threshold0=50000"),
        ("gc.enabled=0", "write it like gc.enabled=false"),
    ],
)
def test_wrong_settings_are_refused(override, message):
    from replay.config.collector import collector_settings

    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        collector_settings([override])


def test_a_recording_without_types_is_refused_with_the_option_that_records_them(tmp_path):
    metadata = Metadata(Provenance(interpreter="cpython 3.11.7"))
    with pytest.raises(ReplayError, match="record --types"):
        CollectedTrace(MemoryTrace([], metadata), CollectorSettings(), "")


def test_an_incremental_collector_is_refused():
    origin, collector = Provenance(interpreter="cpython 3.14.2"), Collector((2000, 10, 0), True, (0, 0, 0), 0, 0)
    metadata = Metadata(origin, collector=collector)
    with pytest.raises(ReplayError, match=r"3\.14\.2 has an incremental collector"):
        CollectedTrace(MemoryTrace([], metadata), CollectorSettings(), "")


def test_an_unknown_mark_is_refused():
    with pytest.raises(ReplayError, match=r"gc.freeze_at: unknown phase 'star'; did you mean 'start'\?"):
        CollectedTrace(history(PAIRS, phases=("start",)), CollectorSettings(freeze_at="star"), "")


@needs_recorder
@pytest.mark.system
def test_run_names_the_settings_and_what_they_assume(tmp_path, replay):
    (tmp_path / "program.py").write_text(
        "kept = []\nfor _ in range(9000):\n    kept.append([])\n    kept[-1].append(kept[-1])"
    )
    record("--types", "program.py", cwd=tmp_path, check=True)
    path = tmp_path / "trace.parquet"
    code, text, notes = replay("run", path, "--no-reference", "--set", "gc.threshold0=50000")
    assert code == 0
    assert "gc.threshold0=50000" in text
    assert "garbage collector with thresholds 50000, 10, 10" in notes
    assert "bound" not in notes
    assert "estimate peak resident" in " ".join(text.split())
    _, _, notes = replay("run", path, "--no-reference", "--set", "gc.threshold0=100")
    assert "estimate between bounds" in notes


@needs_recorder
@pytest.mark.system
def test_json_has_the_estimate_and_its_bounds(tmp_path, replay):
    (tmp_path / "program.py").write_text(SESSIONS)
    record("--types", "program.py", cwd=tmp_path, check=True)
    path, out = tmp_path / "trace.parquet", tmp_path / "results"
    code, text, _ = replay(
        "run", path, "--no-reference", "--json", "--out", out, "--set", "gc.threshold0=100", "--set", "gc.threshold1=3"
    )
    assert code == 0
    summary = json.loads(text)
    what_if = summary["collector_what_if"]
    assert what_if["label"] == "estimate"
    assert what_if["more_frequent"]
    assert what_if["thresholds"] == [100, 3, 10]
    assert what_if["resident_bytes_peak"] == summary["resident_bytes_peak"]
    low, high = what_if["resident_bytes_peak_low"], what_if["resident_bytes_peak_high"]
    assert low <= summary["resident_bytes_peak"] <= high
    assert low < high
    assert json.loads((out / "summary.json").read_text())["collector_what_if"] == what_if
    assert {claim["status"] for claim in summary["claims"]} == {"not exact"}
    same = json.loads(replay("run", path, "--no-reference", "--json", "--set", "gc.threshold0=700")[1])
    assert len({value for key, value in same["collector_what_if"].items() if "resident" in key}) == 1
    plain = json.loads(replay("run", path, "--no-reference", "--json")[1])
    assert "collector_what_if" not in plain
