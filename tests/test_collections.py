"""Garbage collections of a trace in the results of a run: when they ran, what they found and freed, what they cost."""

import numpy as np
import polars as pl
import pytest
from histories import seeded

from replay.analysis import frames
from replay.config import load_config
from replay.simulation.run import run
from replay.sources import open_source
from replay.trace import Domain, Events, MemoryTrace, Metadata, ObjectType, Op
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
    assert found.rows() == [(20, 3, 2, 10, 7, 2, 120), (40, 3, 0, 5, 0, 0, 0)]  # the last one does not end
    assert found.columns == [
        "time_ns", "thread", "generation", "duration_ns", "found_objects", "freed_blocks", "freed_bytes",
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
        .agg(pl.len(), pl.sum("found_objects"))
    )
    assert found.sort("generation").rows() == [(0, 13, 492), (1, 2, 3088), (2, 1, 4170)]
