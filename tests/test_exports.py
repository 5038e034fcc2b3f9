"""`replay export`: each format has exactly the figures of the run, in the structure that its reader expects."""

import io
import json
import pickle
import pickletools
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import polars as pl
import pytest
from histories import History, seeded

from replay.analysis.moments import memory_at
from replay.commands.export import Format
from replay.config import load_config
from replay.reports.exports.memory_viz import PROTOCOL, snapshot
from replay.reports.exports.perfetto import trace_events
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.trace import Domain, MemoryTrace, Op, Site

PAGE = (Path(__file__).parents[1] / "docs" / "exports.md").read_text(encoding="utf-8")
SITES = (Site("load", "app.py", 3), Site("serve", "app.py", 9))


def with_sites(trace, *sites):
    """The trace with these numbers of call sites, in the order of its rows; the last one for all further rows."""
    (events,) = trace.events
    column = np.resize(np.array(sites, np.uint32), events.rows)
    column[len(sites) :] = sites[-1]
    return MemoryTrace([events._replace(site=column)], replace(trace.metadata, sites=SITES))


def two_blocks():
    """A block of 100 bytes by site 0, a freed one, one of 200,000 bytes by site 1 and a mark, at 0, 1, 2 and 4 µs."""
    history = History()
    history.malloc(100)
    freed = history.at(1_000).malloc(100)
    history.malloc(100)
    history.at(2_000).free(freed)
    history.at(4_000).mark(0)
    history.malloc(200_000, Domain.RAW)
    return with_sites(history.trace("serve"), 0, 1, 1, 0, 0, 1)


# Perfetto


def test_levels_phases_and_collections_are_events_with_times_in_microseconds():
    history = History()
    history.mark(0)
    history.malloc(5_000, Domain.RAW)
    history.by(3).at(2_500).mark(2, Op.GC_START)
    garbage = history.malloc(40_000, Domain.RAW)
    history.at(3_750).mark(7, Op.GC_END)
    history.at(4_000).mark(1)
    history.at(5_000).free(garbage)
    found = trace_events(run(history.trace("load", "serve"), load_config("bump"), sample_every_ns=4_000), "a run")
    events = [{key: value for key, value in event.items() if key != "pid"} for event in found["traceEvents"]]
    assert {event["pid"] for event in found["traceEvents"]} == {1}
    assert events[0] == {"ph": "M", "tid": 0, "name": "process_name", "args": {"name": "a run"}}
    counters = [event for event in events if event["ph"] == "C"]
    assert [(event["name"], event["ts"], event["args"]["value"]) for event in counters] == [
        ("requested_bytes", 4.0, 45_000), ("requested_bytes", 5.0, 5_000),
        ("block_bytes", 4.0, 45_008), ("block_bytes", 5.0, 5_008),
        ("heap_bytes", 4.0, 139_264), ("heap_bytes", 5.0, 139_264),
        ("mapped_bytes", 4.0, 139_264), ("mapped_bytes", 5.0, 139_264),
        ("resident_bytes", 4.0, 45_056), ("resident_bytes", 5.0, 45_056),
    ]  # fmt: skip
    assert [event for event in events[1:] if event["ph"] != "C"] == [
        {"ph": "M", "tid": 1, "name": "thread_name", "args": {"name": "phases"}},
        {"ph": "X", "tid": 1, "name": "load", "ts": 0.0, "dur": 4.0, "args": {}},
        {"ph": "X", "tid": 1, "name": "serve", "ts": 4.0, "dur": 1.0, "args": {}},
        {"ph": "M", "tid": 5, "name": "thread_name", "args": {"name": "garbage collections in thread 3"}},
        {
            "ph": "X", "tid": 5, "name": "collection of generation 2", "ts": 2.5, "dur": 1.25,
            "args": {"found_objects": 7, "freed_blocks": 0, "freed_bytes": -40_000},
        },
    ]  # fmt: skip


TRACE_EVENTS = {
    "type": "object",
    "required": ["traceEvents", "displayTimeUnit"],
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "traceEvents": {
            "items": {
                "required": ["ph", "pid", "name"],
                "properties": {"pid": {"type": "integer"}, "tid": {"type": "integer"}, "name": {"type": "string"}},
                "oneOf": [
                    {
                        "required": ["tid", "args"],
                        "properties": {
                            "ph": {"const": "M"},
                            "name": {"enum": ["process_name", "thread_name"]},
                            "args": {"required": ["name"], "properties": {"name": {"type": "string"}}},
                        },
                    },
                    {
                        "required": ["ts", "args"],
                        "properties": {
                            "ph": {"const": "C"},
                            "ts": {"type": "number", "minimum": 0},
                            "args": {"minProperties": 1, "additionalProperties": {"type": "number"}},
                        },
                    },
                    {
                        "required": ["tid", "ts", "dur"],
                        "properties": {
                            "ph": {"const": "X"},
                            "ts": {"type": "number", "minimum": 0},
                            "dur": {"type": "number", "minimum": 0},
                            "args": {"type": "object"},
                        },
                    },
                ],
            },
        },
    },
}
"""What the Trace Event Format demands of metadata (M), counters (C) and complete events (X)."""


@pytest.mark.parametrize("seed", range(3))
def test_trace_events_follow_the_format_and_slices_of_a_track_do_not_overlap(seed):
    history = seeded(seed, 400)
    for thread in (0, 2):
        history.by(thread).mark(0, Op.GC_START)
        history.mark(3, Op.GC_END)
    found = json.loads(json.dumps(trace_events(run(history.trace("load"), load_config("cpython-3.12")), "a run")))
    jsonschema.validate(found, TRACE_EVENTS)
    events = found["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "C", "X"}
    tracks = {event["tid"] for event in events if event["ph"] == "X"}
    assert tracks <= {event["tid"] for event in events if event["name"] == "thread_name"}
    for track in tracks:
        slices = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("tid") == track
                        and event["ph"] == "X")  # fmt: skip
        assert all(end <= start for (_, end), (start, _) in pairwise(slices))
    for name in {event["name"] for event in events if event["ph"] == "C"}:
        times = [event["ts"] for event in events if event["name"] == name]
        assert times == sorted(times)


# memory_viz

READABLE = {
    "PROTO", "FRAME", "MEMOIZE", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "SHORT_BINUNICODE", "BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINGET", "LONG_BINGET",
}  # fmt: skip
"""The instructions of pickle that the visualizer reads, of those that dict, list, str and int need."""


def checked(found):
    """Checks what PyTorch's functions on snapshots expect, and returns the segments."""
    assert {each.name for each, _, _ in pickletools.genops(pickle.dumps(found, PROTOCOL))} <= READABLE
    for segment in found["segments"]:
        assert segment["device"] < len(found["device_traces"])
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            assert block["size"] > 0
            assert 0 <= block["requested_size"] <= block["size"]
            address += block["size"]
        assert address == segment["address"] + segment["total_size"]
        active = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
        assert {block["state"] for block in segment["blocks"]} <= {"active_allocated", "inactive"}
        assert segment["allocated_size"] == segment["active_size"] == sum(block["size"] for block in active)
        assert segment["requested_size"] == sum(block["requested_size"] for block in active)
    return found["segments"]


def test_arenas_and_mappings_are_segments_whose_blocks_are_the_live_ones_and_the_rest():
    processes = memory_at(two_blocks(), load_config("cpython-3.12"), "end", with_blocks=True)
    segments = checked(snapshot(processes, SITES))
    (arena,) = [segment for segment in segments if segment["segment_type"] == "small"]
    load, serve = ([{"name": name, "filename": "app.py", "line": line}] for name, line in (("load", 3), ("serve", 9)))
    assert arena["total_size"] == 1 << 20
    start = arena["address"] + 12_288  # the first pool is at a multiple of 16 KiB
    assert arena["blocks"] == [
        {"address": start - 12_288, "size": 12_288 + 48, "requested_size": 0, "state": "inactive", "frames": []},
        {"address": start + 48, "size": 112, "requested_size": 100, "state": "active_allocated", "frames": load},
        {"address": start + 160, "size": 112, "requested_size": 0, "state": "inactive", "frames": []},
        {"address": start + 272, "size": 112, "requested_size": 100, "state": "active_allocated", "frames": serve},
        {
            "address": start + 384,
            "size": (1 << 20) - 12_288 - 384,
            "requested_size": 0,
            "state": "inactive",
            "frames": [],
        },
    ]
    mapping = [segment for segment in segments if segment["requested_size"] == 200_000]
    assert [block["size"] for segment in mapping for block in segment["blocks"]] == [200_704]
    assert mapping[0]["blocks"][0]["frames"] == serve


@pytest.mark.parametrize("stack", ["cpython-3.8", "cpython-3.12", "cpython-3.12-malloc", "cpython-2.7", "bump"])
def test_segments_add_up_to_the_mapped_and_the_requested_bytes(stack):
    trace, config = seeded(4, 4_000).trace(), load_config(stack)
    for moment in ("peak", "end"):
        (memory,) = memory_at(trace, config, moment, with_blocks=True)
        segments = checked(snapshot([memory], ()))
        assert sum(segment["total_size"] for segment in segments) == memory.spans["bytes"].sum()
        assert sum(segment["requested_size"] for segment in segments) == memory.requested_bytes


# The command


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "app.parquet"
    write_trace(two_blocks(), path)
    return path


def test_a_pickle_is_written_and_the_last_line_says_what_opens_it(replay, recording, tmp_path):
    out = tmp_path / "memory.pickle"
    code, printed, _ = replay("export", recording, "--to", "memory_viz", "-o", out, "-a", "cpython-3.12", "--at", "2us")
    assert code == 0
    assert printed.splitlines() == [
        f"written: {out}", f"next: open {out} in https://pytorch.org/memory_viz, view Allocator State History",
    ]  # fmt: skip
    assert sum(segment["requested_size"] for segment in checked(pickle.loads(out.read_bytes()))) == 200


def test_speedscope_has_live_and_pinned_bytes_of_each_call_site(replay, recording, tmp_path):
    out = tmp_path / "pins.json"
    code, _, _ = replay("export", recording, "--to", "speedscope", "-o", out, "-a", "cpython-3.8")
    assert code == 0
    found = json.loads(out.read_text())
    assert found["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = [(frame["name"], frame.get("file"), frame.get("line")) for frame in found["shared"]["frames"]]
    live, pinned = found["profiles"]
    assert {(each["type"], each["unit"], each["startValue"]) for each in (live, pinned)} == {("sampled", "bytes", 0)}

    def weights(profile):
        assert profile["endValue"] == sum(profile["weights"])
        assert {frames[stack[0]] for stack in profile["samples"] if stack[1:]} <= {("app.py", "app.py", None)}
        return {frames[stack[-1]]: weight for stack, weight in zip(profile["samples"], profile["weights"], strict=True)}

    assert weights(live) == {("serve", "app.py", 9): 112 + 200_704, ("load", "app.py", 3): 112}
    report = json.loads(replay("pins", recording, "-a", "cpython-3.8", "--json")[1])
    by_site = {group["name"]: group["pinned_bytes"] for group in report["by_site"] if group["pinned_bytes"]}
    found = {f"{name} ({file}:{line})": weight for (name, file, line), weight in weights(pinned).items() if file}
    assert found == by_site
    together = weights(pinned).get(("several call sites together", None, None), 0)
    assert together == report["releasable_bytes"] - sum(by_site.values()) > 0


def test_tables_are_the_same_as_csv_and_as_parquet(replay, recording, tmp_path):
    for kind in ("csv", "parquet"):
        assert replay("export", recording, "--to", kind, "-o", tmp_path / "tables", "-a", "cpython-3.9")[0] == 0
    files = sorted(path.name for path in (tmp_path / "tables").iterdir())
    assert files == sorted(
        f"{name}.{kind}" for name in ("arenas", "collections", "phases", "pools", "size_classes", "timeline")
        for kind in ("csv", "parquet")
    )  # fmt: skip
    for name in ("timeline", "phases", "arenas", "size_classes"):
        table = pl.read_parquet(tmp_path / "tables" / f"{name}.parquet")
        written = io.StringIO(table.write_csv())
        assert (tmp_path / "tables" / f"{name}.csv").read_text() == written.getvalue()
    assert "already has timeline.csv" in replay("export", recording, "--to", "csv", "-o", tmp_path / "tables")[2]


def test_what_cannot_be_exported_is_refused(refused, recording, tmp_path):
    out = tmp_path / "out"
    plain = tmp_path / "plain.parquet"
    write_trace(seeded(1, 50).trace(), plain)
    assert "has no call sites for speedscope; record it with: replay record --sites" in refused(
        "export", plain, "--to", "speedscope", "-o", out
    )
    assert "--at peak: perfetto has the whole run" in refused(
        "export", plain, "--to", "perfetto", "-o", out, "--at", "peak"
    )
    assert "`ideal` does not have" in refused("export", plain, "--to", "memory_viz", "-o", out, "-a", "ideal")
    assert "is the input file" in refused("export", plain, "--to", "perfetto", "-o", plain)
    unknown = refused("export", plain, "--to", "nothing", "-o", out)
    assert "'nothing' is not one of" in unknown
    assert "Value error" not in unknown
    assert "already exists" in refused("export", plain, "--to", "perfetto", "-o", recording)
    assert not out.exists()


def test_the_page_has_every_format():
    cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"`(\w+)`", cell)] == [*Format]
