"""The private dirty memory of forked children: pages that they write to, computed by hand, and in recordings."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_to_the_last
from test_record_command import RECORD

from replay.analysis.forks import PAGE_BYTES, forked_memory, heap_at_fork
from replay.config.collector import with_collector
from replay.sources import open_source
from replay.trace import (
    NO_TYPE,
    TEARDOWN_MARK,
    Collector,
    Domain,
    Events,
    MemoryTrace,
    Metadata,
    ObjectType,
    Op,
    Provenance,
)
from replay.trace.editing.collecting import CollectorSettings

LIST, INT = 0, 1
TYPES = ObjectType("builtins", "list", True), ObjectType("builtins", "int", False)
COLLECTOR = Collector((700, 10, 10), True, (0, 0, 0), 40, 1, 0, pages=10)


def trace(rows, phases, collector=COLLECTOR):
    """Returns a recording of rows (op, block, size, address, type)."""
    events = Events.empty(len(rows), "address", "type")
    for name, column in zip(("op", "block", "size", "address", "type"), np.array(rows, np.int64).T, strict=True):
        getattr(events, name)[:] = column
    events.time_ns[:], events.thread[:], events.domain[:] = np.arange(len(rows)), 0, Domain.OBJ
    origin = Provenance(interpreter="cpython 3.12.1")
    return MemoryTrace([events], Metadata(origin=origin, types=TYPES, phases=phases, collector=collector))


def malloc(block, address, size=64):
    return Op.MALLOC, block, size, address, NO_TYPE


def mark(phase):
    return Op.MARK, 0, phase, 0, NO_TYPE


def collection(generation):
    return [(Op.GC_START, 0, generation, 0, NO_TYPE), (Op.GC_END, 0, 0, 0, NO_TYPE)]


PARENT = trace(
    [
        malloc(1, 0x10040),  # a list, which becomes old
        malloc(2, 0x21040),  # an int
        *collection(2),
        mark(0),
        malloc(3, 0x30040),  # a list, which stays young
        mark(1),
        *((Op.LIVE_OBJECT, block, 1, 0, type_) for block, type_ in ((1, LIST), (2, INT), (3, LIST))),
    ],
    ("loaded", "fork 1"),
)


def written(*rows, freeze_at=None, collector=COLLECTOR):
    """Returns the pages that a child writes to, with all references, and by collections only."""
    child = trace([mark(0), *rows], ("fork 1", TEARDOWN_MARK), collector)
    heap = heap_at_fork(PARENT, "fork 1", child, freeze_at)
    found = forked_memory(heap, child, child, "child.parquet", 7, "fork 1")
    sizes = found.private_dirty_bytes, found.private_dirty_bytes_high, found.collections_bytes
    return tuple(size // PAGE_BYTES for size in sizes)


def test_a_child_writes_to_its_blocks_and_the_headers_of_their_pools():
    assert written() == (0, 3 + 10, 0)  # the objects of the parent, and the older ones
    assert written(malloc(1, 0x54000)) == (1, 14, 0)
    assert written(malloc(1, 0x55040)) == (2, 15, 0)  # the header is at 0x54000
    assert written(malloc(1, 0x55040), malloc(2, 0x55FF0)) == (3, 16, 0)
    assert written(malloc(1, 0x55040, 4096)) == (2, 15, 0)  # a block of the C library


def test_a_block_that_the_c_library_maps_counts_while_it_lives():
    assert written(malloc(1, 0x7F0000000010, 1 << 20)) == (257, 270, 0)
    assert written(malloc(1, 0x7F0000000010, 1 << 20), (Op.FREE, 1, 0, 0, NO_TYPE)) == (0, 13, 0)


def test_the_free_of_a_parents_block_writes_to_it_and_to_the_header_of_its_pool():
    assert written((Op.FOREIGN_FREE, 0, 0, 0x21040, INT)) == (2, 14, 0)
    assert written((Op.FOREIGN_FREE, 0, 0, 0x99040, INT)) == (1, 14, 0)  # older than the parent's recording


def test_a_collection_writes_to_the_objects_of_its_generation_and_younger_ones():
    assert written(*collection(0)) == (1, 13, 1)
    assert written(*collection(1), *collection(1)) == (1, 13, 1)
    assert written(*collection(2)) == (12, 13, 12)
    assert written(malloc(1, 0x10100), *collection(2)) == (12, 13, 11)  # to the first list's page anyway


def test_a_collection_in_the_teardown_does_not_count():
    assert written(mark(1), *collection(2)) == (0, 13, 0)


def test_frozen_objects_are_not_written_to():
    assert written(*collection(2), freeze_at="fork 1") == (0, 13, 0)
    assert written(*collection(2), freeze_at="loaded") == (1, 13, 1)  # the second list is newer
    frozen = replace(COLLECTOR, old_objects=1, frozen_objects=41)  # the program itself froze the others
    assert written(*collection(2), collector=frozen) == (1, 13, 1)


SERVER = """
import gc, os, sys
import replay
nodes = [[number, {"id": number}] for number in range(20_000)]
if os.fork():
    os.wait()
    sys.exit()
kept = [[number] for number in range(10_000)]
gc.collect()
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    run_to_the_last(*RECORD, "--types", "--follow-fork", "-o", "all.parquet", "-c", SERVER, cwd=folder, check=True)
    return folder / "all.parquet"


@pytest.mark.system
def test_a_full_collection_in_a_recorded_child_writes_to_the_pages_that_python_finds(recording):
    parent = open_source(recording)
    (file,) = recording.parent.glob("all.*.parquet")
    child = open_source(file)
    assert child.metadata.phases[0] == "fork 1"
    assert parent.metadata.phases == ("fork 1", TEARDOWN_MARK)
    heap = heap_at_fork(parent, "fork 1", child)
    pages = len(np.unique(heap.address[heap.generation >= 0] // PAGE_BYTES)) + heap.older_pages
    # Pages with both older and newer objects are counted twice; how many there are depends on random addresses.
    assert pages - heap.older_pages <= child.metadata.collector.pages <= pages + 2
    assert pages == pytest.approx(child.metadata.collector.pages, rel=0.06)
    whole = forked_memory(heap, child, child, file.name, 1, "fork 1")
    settings = CollectorSettings(enabled=False)
    assert forked_memory(heap, child, with_collector(child, settings), file.name, 1, "fork 1") == replace(
        whole, collections=1  # the call of gc.collect stays
    )  # fmt: skip


@pytest.mark.system
def test_run_shows_forked_children_under_other_settings(recording, replay):
    def forks(*settings):
        return json.loads(replay("run", recording, "--json", "--no-reference", *settings)[1])["forks"]

    (default,), (frozen,) = forks(), forks("--set", "gc.freeze_at=fork 1")
    assert (default["fork"], default["label"]) == ("fork 1", "estimate")
    assert default["file"] == f"all.{default['process']}.parquet"
    assert default["collections_bytes"] > 2 << 20  # 20,000 lists and dicts of 56 and 64 bytes, with headers
    assert frozen["collections_bytes"] < 64 << 10
    assert default["private_dirty_bytes"] - frozen["private_dirty_bytes"] == pytest.approx(
        default["collections_bytes"] - frozen["collections_bytes"]
    )
    text = replay("run", recording, "--no-reference")[1]
    assert f"fork 1, process {default['process']}" in text
