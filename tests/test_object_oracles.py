"""Allocations of Python scripts in every real interpreter of this machine, with sequences computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from replay.trace import Domain, Op
from replay.verification.harness import HarnessError
from replay.verification.object_oracles import Collector, Region, find_object_oracles, record_objects
from replay.verification.oracles import Oracle

ORACLES = find_object_oracles()
IMPORTS = "from allocation_log import mark, start, stop\nimport gc\n"
MARK, MALLOC, REALLOC, FREE = "mark", "malloc", "realloc", "free"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not ORACLES, reason="no libpython from 3.8 on on this machine: see `replay verify --list`"),
]
each_oracle = pytest.mark.parametrize("oracle", ORACLES.values(), ids=[oracle.name for oracle in ORACLES.values()])


def regions_of(oracle: Oracle, script: str) -> list[Region]:
    return record_objects(oracle, IMPORTS + script)


def rows(region: Region) -> list[tuple[object, ...]]:
    """From an event, (op, domain, size, block); from a mark or collection, (op, size)."""
    names = [Op(op).name.lower() for op in region.events["op"].tolist()]
    values = zip(names, *(region.events[name].tolist() for name in ("domain", "size", "block")), strict=True)
    calls = (MALLOC, "calloc", REALLOC, FREE)
    return [(op, Domain(domain), size, block) if op in calls else (op, size) for op, domain, size, block in values]


def release_of(oracle: Oracle) -> tuple[int, int]:
    major, minor = oracle.version.split(".")[:2]
    return int(major), int(minor)


def obj(op: str, size: int, block: int) -> tuple[object, ...]:
    return (op, Domain.OBJ, size, block)


# The log


@each_oracle
def test_a_region_without_statements_is_empty(oracle):
    marked, *empty = regions_of(oracle, "start()\nmark(1)\nmark(2)\nstop()\nstart()\nstop()\nstart()\nstop()")
    assert rows(marked) == [(MARK, 1), (MARK, 2)]
    assert [rows(region) for region in empty] == [[], []]
    assert empty[1].before == empty[1].after == marked.before


@each_oracle
def test_each_event_has_its_thread_and_a_region_can_wait_for_all_threads_to_end(oracle):
    script = (
        "import _thread\nfrom allocation_log import join\n"
        "def work(): x = letter * 500\n"
        "letter = 'x'\nstart()\nfor _ in (1, 2, 3): _thread.start_new_thread(work, ())\njoin()\nstop()"
    )
    (region,) = regions_of(oracle, script)
    assert np.unique(region.threads).tolist() == [0, 1, 2, 3]
    size = 541 if release_of(oracle) >= (3, 12) else 549
    for op in (Op.MALLOC, Op.FREE):
        threads = region.threads[(region.events["op"] == op) & (region.events["size"] == size)]
        assert sorted(threads.tolist()) == [1, 2, 3]


@each_oracle
def test_regions_in_a_function_that_runs_often_are_empty(oracle):
    script = "def twice():\n    start(); mark(3); stop(); start(); stop()\nfor i in range(500): twice()"
    regions = regions_of(oracle, script)
    assert [rows(region) for region in regions] == [[(MARK, 3)], []] * 500


@each_oracle
def test_the_same_script_has_the_same_events_and_the_same_collections(oracle):
    script = """
import string, sys  # writes its bytecode if there is none
del sys.modules["string"]
start()
class Node: pass
nodes = {str(number): Node() for number in range(3000)}
for node in nodes.values(): node.self = node
nodes.clear()
stop()
start()
import string
stop()"""
    one, other = regions_of(oracle, script), regions_of(oracle, script)
    assert [rows(region) for region in one] == [rows(region) for region in other]
    assert [(region.before, region.after) for region in one] == [(region.before, region.after) for region in other]
    assert len(one[0].events) > 5000
    assert len(one[1].events) > 100


@each_oracle
def test_blocks_are_numbered_in_each_region_and_older_blocks_are_block_0_with_their_size(oracle):
    script = """
class Slots: __slots__ = ("a", "b")
x = y = z = None
z = Slots()
start()
x = Slots()
y = Slots()
x = None
z = None
stop()
start()
x = Slots()
y = None
x = None
stop()"""
    first, second = regions_of(oracle, script)
    assert rows(first) == [obj(MALLOC, 48, 1), obj(MALLOC, 48, 2), obj(FREE, 48, 1), obj(FREE, 48, 0)]
    assert rows(second) == [obj(MALLOC, 48, 1), obj(FREE, 48, 0), obj(FREE, 48, 1)]


@each_oracle
def test_a_large_request_is_one_event_of_its_own_domain(oracle):
    header = 48 if release_of(oracle) < (3, 12) else 40
    (region,) = regions_of(oracle, "x, n, y = 'x', 1000, None\nstart()\ny = x * n\ny = None\nstop()")
    assert rows(region) == [obj(MALLOC, header + 1000 + 1, 1), obj(FREE, header + 1000 + 1, 1)]


# Objects


@each_oracle
def test_append_grows_a_list_as_listobject_c_says(oracle):
    sizes = [4, 8, 16, 25, 35] if release_of(oracle) == (3, 8) else [4, 8, 16, 24, 32]
    script = "items = []\nstart()\n" + "items.append(None)\n" * 32 + "stop()"
    (region,) = regions_of(oracle, script)
    first, *others = [8 * size for size in sizes]
    assert rows(region) == [(MALLOC, Domain.MEM, first, 1), *((REALLOC, Domain.MEM, size, 1) for size in others)]


@each_oracle
def test_a_tuple_is_allocated_once_and_then_comes_from_the_free_list(oracle):
    script = """
a, b, c, t = 1, 2, 3, None
older = [(a, b, each) for each in range(3000)]
start()
t = (a, b, c)
mark(1)
t = None
mark(2)
t = (c, b, a)
mark(3)
stop()"""
    (region,) = regions_of(oracle, script)
    header = 24 if release_of(oracle) < (3, 14) else 32
    assert rows(region) == [obj(MALLOC, 16 + header + 3 * 8, 1), (MARK, 1), (MARK, 2), (MARK, 3)]


@each_oracle
def test_a_float_is_kept_after_a_statement_and_its_operands_are_not_allocated(oracle):
    script = """
x, y, z = 1.5, 2.0, None
older = [each + x for each in range(300)]
start()
z = x * y
stop()"""
    (region,) = regions_of(oracle, script)
    assert rows(region) == [obj(MALLOC, 24, 1)]


@each_oracle
def test_a_dict_grows_its_table_as_dictobject_c_says(oracle):
    release = release_of(oracle)
    header = 40 if release < (3, 11) else 32
    domain = Domain.OBJ if release < (3, 13) else Domain.MEM
    of_16, of_32, of_64 = (header + slots + 24 * usable for slots, usable in ((16, 10), (32, 21), (64, 42)))
    script = "d = {}\nfor i in range(10): d[i] = None\nstart()\n"
    script += "".join(f"d[{key}] = None\n" + ("mark(20)\n" if key == 20 else "") for key in range(10, 22)) + "stop()"
    (region,) = regions_of(oracle, script)
    assert rows(region) == [
        (MALLOC, domain, of_32, 1), (FREE, domain, of_16, 0), (MARK, 20),
        (MALLOC, domain, of_64, 2), (FREE, domain, of_32, 1),
    ]  # fmt: skip


# Collections


@each_oracle
def test_a_collection_encloses_the_frees_of_its_garbage(oracle):
    script = """
class Node: __slots__ = ("me",)
n = None
gc.disable()
gc.collect()
n = Node()
n.me = n
n = None
start()
gc.collect(0)
mark(1)
stop()"""
    (region,) = regions_of(oracle, script)
    announced = release_of(oracle) >= (3, 12)  # the strings "start" and "stop" for callbacks, though there are none
    begin, end = ([obj(MALLOC, 40 + 6, 1), obj(FREE, 46, 1)], [obj(MALLOC, 45, 2), obj(FREE, 45, 2)])
    expected = [*(begin if announced else ()), obj(FREE, 40, 0), *(end if announced else ())]
    assert rows(region) == [("gc_start", 0), *expected, ("gc_end", 0), (MARK, 1)]
    assert region.after.collected[0] - region.before.collected[0] == 1


@each_oracle
def test_collections_one_after_the_other_are_recorded_with_their_generations(oracle):
    script = "gc.disable()\nstart()\n" + "".join(f"gc.collect({n})\nmark({n})\n" for n in (2, 0, 0, 1, 0, 2)) + "stop()"
    (region,) = regions_of(oracle, script)
    ops = [row for row in rows(region) if len(row) == 2]
    assert ops == [row for n in (2, 0, 0, 1, 0, 2) for row in (("gc_start", n), ("gc_end", n), (MARK, n))]
    totals = zip(region.before.collections, region.after.collections, strict=True)
    assert [after - before for before, after in totals] == [3, 1, 2]


@each_oracle
def test_automatic_collections_are_recorded_once_each(oracle):
    script = """
items = [None] * 1000
gc.collect()
gc.set_threshold(50, 2, 2)
start()
for i in range(1000): items[i] = [i]
stop()"""
    (region,) = regions_of(oracle, script)
    collections = [row for row in rows(region) if str(row[0]).startswith("gc_")]
    totals = zip(region.before.collections, region.after.collections, strict=True)
    counted = [after - before for before, after in totals]
    assert [collections.count(("gc_start", n)) for n in range(3)] == counted
    assert collections[::2] == [("gc_start", n) for _, n in collections[1::2]]
    assert collections[1::2] == [("gc_end", n) for _, n in collections[::2]]
    assert counted[0] > 10
    assert counted[1] > 3


@each_oracle
def test_the_state_of_the_collector_is_that_of_the_module_gc(oracle, tmp_path: Path):
    script = f"""
import json
class Node: pass
for i in range(5): n = Node(); n.n = n
gc.collect(1)
for i in range(3): n = Node(); n.n = n
del n
gc.collect()
gc.collect(0)
counts = list(gc.get_count())
counts[0] = gc.get_count()[0]
counts[0] = gc.get_count()[0]
start()
stop()
with open({str(tmp_path / "state")!r}, "w") as file: json.dump([counts, gc.get_stats()], file)"""
    (region,) = regions_of(oracle, script)
    counts, stats = json.loads((tmp_path / "state").read_text())
    names = ("collections", "collected", "uncollectable")
    totals = (tuple(generation[name] for generation in stats) for name in names)
    assert region.before == region.after == Collector(tuple(counts), *totals)
    assert region.after.collected[2] > 0


# Errors


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("raise ValueError('not this')", "ValueError: not this"),
        ("x = (", "SyntaxError: .*"),
        ("start()", "the script ended in a region"),
        ("start()\nstart()", r"start\(\) was called in a region"),
        ("stop()", r"stop\(\) was called outside a region"),
        ("mark(1)", r"mark\(\) was called outside a region"),
        ("import os\nos._exit(0)", "the script ended the process without finalizing the interpreter"),
        ("#" * (1 << 18), "the script is too long"),
        ("for i in range(1025): start(); stop()", "the script has too many regions"),
    ],
)
@each_oracle
def test_a_script_that_fails_is_an_error_with_its_reason(oracle, script, message):
    with pytest.raises(HarnessError, match=rf"^{oracle.name} failed: {message}$"):
        regions_of(oracle, script)
