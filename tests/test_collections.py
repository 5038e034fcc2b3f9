"""Garbage collections of a trace in the results of a run: when they ran, what they found and freed, what they cost."""

import numpy as np
import polars as pl
import pytest
from histories import seeded

from replay.analysis import frames
from replay.config import load_config
from replay.simulation.run import run
from replay.sources import open_source
from replay.trace import NO_TYPE, Collector, Domain, Events, MemoryTrace, Metadata, ObjectType, Op
from replay.trace.provenance import Provenance

CONFIG = load_config("cpython-3.12")
ROWS = [
    (10, Op.MALLOC, 1, 100), (20, Op.MALLOC, 2, 50), (30, Op.GC_START, 0, 2), (31, Op.FREE, 1, 0), (32, Op.FREE, 2, 0),
    (33, Op.MALLOC, 1, 30), (40, Op.GC_END, 0, 7), (50, Op.GC_START, 0, 0), (55, Op.GC_END, 0, 0),
    (60, Op.GC_START, 0, 0),
]  # fmt: skip


def trace(metadata=Metadata()):  # noqa: B008
    events = Events.empty(len(ROWS))
    columns = np.array(ROWS, np.int64).T
    for name, column in zip(("time_ns", "op", "block", "size"), columns, strict=True):
        getattr(events, name)[:] = column
    events.thread[:], events.domain[:] = 3, Domain.OBJ
    return MemoryTrace([events], metadata)


def test_each_collection_has_a_row_with_what_it_found_freed_and_cost():
    found = frames.collections(run(trace(), CONFIG))
    assert found.rows() == [(20, 3, 2, 10, None, 7, 2, 120), (40, 3, 0, 5, None, 0, 0, 0)]  # the last one does not end
    assert found.columns == [
        "time_ns", "thread", "generation", "duration_ns", "visited_objects", "found_objects", "freed_blocks",
        "freed_bytes",
    ]  # fmt: skip


@pytest.mark.parametrize(("types", "generations"), [((), [None, None]), ((ObjectType("", "int", False),), [2, 0])])
def test_recordings_without_types_do_not_know_generations(types, generations):
    metadata = Metadata(origin=Provenance(interpreter="cpython 3.12.1"), types=types)
    assert frames.collections(run(trace(metadata), CONFIG))["generation"].to_list() == generations


def test_a_run_of_a_batch_at_a_time_finds_the_same():
    events = next(trace().batches())
    parts = MemoryTrace([events.where(slice(row, row + 1)) for row in range(events.rows)])
    assert frames.collections(run(parts, CONFIG)).equals(frames.collections(run(trace(), CONFIG)))


@pytest.mark.parametrize("every_ns", [1, 50, 5000])
def test_collections_change_no_sample(every_ns):
    events = next(seeded(3, 400).trace().batches())
    rows = np.sort(np.random.default_rng(1).integers(0, events.rows, 60))

    def with_op(op):
        both = {name: np.insert(column, rows, column[rows]) for name, column in events.present().items()}
        places = rows + np.arange(len(rows))
        both["op"][places], both["block"][places], both["size"][places] = op, 0, 0
        return run(MemoryTrace([Events(**both)]), CONFIG, sample_every_ns=every_ns)

    plain, collecting = with_op(Op.FOREIGN_FREE), with_op(Op.GC_START)
    assert len(collecting.collections) == 60
    assert frames.timeline(plain).equals(frames.timeline(collecting))
    assert plain.end == collecting.end


def test_collections_of_an_object_program_are_those_of_its_machine():
    found = (
        frames.collections(run(open_source("cyclic-graph"), CONFIG))
        .group_by("generation")
        .agg(pl.len(), pl.sum("visited_objects", "found_objects"))
    )
    assert found.sort("generation").rows() == [(0, 13, 6676, 492), (1, 2, 6683, 3088), (2, 1, 4170, 4170)]


def typed(rows, version="3.11.7", freeze_at=None):
    """Returns the visits of each collection in a recording of rows (op, block, size, type): 0 is a list, 1 an int, 2 a
    tuple."""
    events = Events.empty(len(rows), "type")
    for name, column in zip(("op", "block", "size", "type"), np.array(rows, np.int64).T, strict=True):
        getattr(events, name)[:] = column
    events.time_ns[:], events.thread[:], events.domain[:] = np.arange(len(rows)), 0, Domain.OBJ
    types = tuple(ObjectType("builtins", name, name != "int") for name in ("list", "int", "tuple"))
    metadata = Metadata(
        origin=Provenance(interpreter=f"cpython {version}"), types=types, phases=("fork",), freeze_at=freeze_at,
        collector=Collector((700, 10, 10), True, (5, 0, 0), 40, 1),
    )  # fmt: skip
    parts = [events.where(slice(0, 5)), events.where(slice(5, events.rows))]
    return list(run(MemoryTrace(parts, metadata), CONFIG).metadata.visits)


def collection(generation):
    return [(Op.GC_START, 0, generation, NO_TYPE), (Op.GC_END, 0, 0, NO_TYPE)]


def allocated(*blocks):
    return [(Op.MALLOC, block, 64, NO_TYPE) for block in blocks]


def at_end(block, type_, tracked=1):
    return Op.LIVE_OBJECT, block, tracked, type_


def test_a_collection_of_a_recording_visits_the_objects_of_its_generation_and_younger_ones():
    rows = [
        *allocated(1, 2, 3),  # a list, an int, a list
        *collection(0),  # 2, and the 5 that were young when the recording started
        *allocated(4),  # a list
        *collection(0),  # 1
        *allocated(5),
        *collection(1),  # those of 4 lists; all are old now
        (Op.FREE, 3, 0, 0),
        *collection(1),  # none
        *collection(2),  # lists 1, 4 and 5, and the 40 that were old when the recording started
        (Op.FOREIGN_FREE, 0, 0, 0),
        *allocated(6),
        (Op.GC_START, 0, 2, NO_TYPE),  # 1, 4, 5, 6, and 39
        (Op.FREE, 5, 0, 0),
        (Op.GC_END, 0, 1, NO_TYPE),
        *(at_end(block, 0) for block in (1, 4, 6)),
        at_end(2, 1),
        (Op.FREE, 1, 0, 0),  # in the teardown
    ]
    assert typed(rows) == [7, 1, 4, 0, 43, 43]


def test_a_tuple_that_is_not_tracked_at_the_end_was_visited_once_up_to_3_13():
    rows = [*allocated(1, 2), *collection(2), *collection(2), at_end(1, 0), at_end(2, 2, tracked=0)]
    assert typed(rows) == [47, 41]
    assert typed(rows, "3.14.10") == [46, 41]


def test_frozen_objects_are_visited_no_more():
    rows = [*allocated(1), *collection(2), (Op.MARK, 0, 0, NO_TYPE), *allocated(2), *collection(2)]
    assert typed([*rows, at_end(1, 0), at_end(2, 0)], freeze_at="fork") == [46, 1]


@pytest.mark.parametrize("version", ["3.14.0", "3.14.4"])
def test_visits_are_unknown_of_an_incremental_collector_and_without_types_of_live_objects(version):
    rows = [*allocated(1), *collection(2), at_end(1, 0)]
    assert typed(rows, version) == typed(rows[:-1]) == []
    assert typed(rows, "3.14.5") == [46]
