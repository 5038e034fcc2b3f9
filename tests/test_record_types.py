"""Types of recorded objects: exact numbers in known programs, and the tables that show them."""

import ctypes
import gc
import itertools
import json
import os
import textwrap
from collections import Counter

import numpy as np
import pytest
from conftest import events_in, python_api, record
from test_record_python import AT_HAND

import replay
from replay.recorder import tap as taps
from replay.trace import NO_TYPE, Collector, Domain, Events, Metadata, Op
from replay.verification.recordings import verify_recording

pytestmark = pytest.mark.system

if reason := taps.obstacle(types=True):
    pytest.skip(reason, allow_module_level=True)


def recording_of(folder, source, *options, name="program.py"):
    """Returns events and metadata of a program."""
    (folder / name).write_text(textwrap.dedent(source))
    done = record("--types", *options, name, cwd=folder)
    assert done.returncode == 0, done.stderr
    path = folder / "trace.parquet"
    return events_in(path), replay.open_source(path).metadata


def by_type(events: Events, metadata: Metadata, chosen) -> Counter[str]:
    """Returns how many of the chosen rows have each type."""
    types = events.type[chosen]
    return Counter(str(metadata.types[type_]) for type_ in types[types != NO_TYPE])


def freed(events: Events, metadata: Metadata) -> Counter[str]:
    """Returns the types of the blocks that were freed before the program ended."""
    ends = np.flatnonzero(events.op == Op.MARK)
    rows = np.arange(events.rows) < (ends[-1] if ends.size else events.rows)
    return by_type(events, metadata, rows & (events.op == Op.FREE))


def live(events: Events, metadata: Metadata) -> Counter[str]:
    return by_type(events, metadata, events.op == Op.LIVE_OBJECT)


def types_of_freed(events, metadata):
    """Returns the type of each block by address and size when it was freed for the first time; '' for no type."""
    blocks: dict[int, tuple[int, int]] = {}
    types: dict[tuple[int, int], str] = {}
    columns = (events.op, events.block, events.address, events.size, events.type)
    for op, block, address, size, type_ in zip(*(column.tolist() for column in columns), strict=True):
        if op <= Op.CALLOC:
            blocks[block] = address, size
        elif op in (Op.FREE, Op.LIVE_OBJECT) and block in blocks:
            types.setdefault(blocks[block], "" if type_ == NO_TYPE else metadata.types[type_].name)
    return types


OBJECTS = """
    import sys
    class X: pass
    class Slotted:
        __slots__ = ("value",)
    class Weak:
        __slots__ = ("__weakref__",)
    class Derived(dict): pass
    class Meta(type): pass
    class Made(metaclass=Meta): pass
    KINDS = X, Slotted, Weak, Derived, Made
    kept = [[kind() for _ in range(500)] for kind in KINDS]
    lost = [[kind() for _ in range(300)] for kind in KINDS]
    del lost
    lists = [[] for _ in range(1000)]
    texts = ["a" * 600 + str(number) for number in range(200)]
    del texts
    generators = [(number for number in ()) for _ in range(150)]
"""


@pytest.mark.parametrize("version", AT_HAND)
def test_objects_have_their_types_when_they_are_freed_and_at_the_end(tmp_path, version):
    events, metadata = recording_of(tmp_path, OBJECTS, "--python", AT_HAND[version])
    dead, alive = freed(events, metadata), live(events, metadata)
    for name in ("X", "Slotted", "Weak", "Derived", "Made"):
        assert (dead[f"__main__.{name}"], alive[f"__main__.{name}"]) == (300, 500)
    assert 1000 - 80 <= alive["list"] <= 1000 + 10  # CPython keeps up to 80 lists that were freed before
    assert alive["generator"] == 150
    assert dead["str"] >= 200
    assert metadata.origin.interpreter == f"cpython {version}"


@pytest.mark.parametrize("version", AT_HAND)
def test_classes_that_die_keep_their_names_and_equal_addresses_are_told_apart(tmp_path, version):
    source = """
        import gc
        gc.disable()
        def make(number):
            kind = type(f"Kind{number}", (), {"__module__": f"module{number}"})
            pair = kind(), kind()
            pair[0].other, pair[1].other = reversed(pair)
        for number in range(300):
            make(number)
            if number % 2:
                gc.collect()
    """
    events, metadata = recording_of(tmp_path, source, "--python", AT_HAND[version])
    dead = freed(events, metadata)
    assert [dead[f"module{number}.Kind{number}"] for number in range(300)] == [2] * 300
    assert not [name for name in live(events, metadata) if "Kind" in name]


def test_every_collection_has_its_generation_and_frees_what_it_found(tmp_path):
    source = """
        import gc
        gc.disable()
        class Node: pass
        def cycle():
            first, second = Node(), Node()
            first.other, second.other = second, first
        for generation in (0, 1, 2):
            gc.collect()
            for _ in range(100):
                cycle()
            gc.collect(generation)
    """
    events, metadata = recording_of(tmp_path, source)
    end = np.flatnonzero(events.op == Op.MARK)[-1]
    starts, ends = (np.flatnonzero(events.op[:end] == op) for op in (Op.GC_START, Op.GC_END))
    assert events.size[starts][-6:].tolist() == [2, 0, 2, 1, 2, 2]
    nodes = [
        by_type(events.where(slice(start, stop)), metadata, slice(None))["__main__.Node"]
        for start, stop in zip(starts, ends, strict=True)
    ]
    assert nodes[-6:] == [0, 200, 0, 200, 0, 200]


def test_blocks_that_are_no_objects_have_no_type(tmp_path):
    malloc, free = python_api(Domain.OBJ, "Malloc"), python_api(Domain.OBJ, "Free")
    sizes = range(1, 512, 8)
    with replay.record(tmp_path / "trace.parquet", types=True):
        lost = [malloc(size) for size in sizes]
        kept = [malloc(size) for size in sizes]
        for block, size in zip((*lost, *kept), (*sizes, *sizes), strict=True):
            ctypes.memset(block, 0, -(-size // 16) * 16)  # it can have the remains of an object
        for block in lost:
            free(block)
    for block in kept:
        free(block)
    events, metadata = events_in(tmp_path / "trace.parquet"), replay.open_source(tmp_path / "trace.parquet").metadata
    types = types_of_freed(events, metadata)
    assert [types[block] for block in zip(lost, sizes, strict=True)] == [""] * len(sizes)
    assert [block for block in zip(kept, sizes, strict=True) if block in types] == []


@pytest.mark.parametrize("size", [15, 31])  # no object has this size
def test_a_short_block_does_not_have_the_type_of_the_next_block(tmp_path, size):
    class Plain:
        pass

    malloc, free = python_api(Domain.OBJ, "Malloc"), python_api(Domain.OBJ, "Free")
    place = size + 1
    behind = {16: list, 32: Plain}[place]  # its objects have headers of this length
    with replay.record(tmp_path / "trace.parquet", types=True):
        blocks = sorted(malloc(size) for _ in range(20_000))
        for block in blocks:
            ctypes.memset(block, 0, place)
        adjacent = [block for block, following in itertools.pairwise(blocks) if following == block + place]
        for block in adjacent[::2]:
            ctypes.c_uint64.from_address(block + place + 8).value = id(behind)
            free(block)
    for block in set(blocks) - set(adjacent[::2]):
        free(block)
    path = tmp_path / "trace.parquet"
    types = types_of_freed(events_in(path), replay.open_source(path).metadata)
    assert len(adjacent) > 1000
    assert {types[block, size] for block in adjacent[::2]} == {""}


def test_types_of_modules_that_are_imported_later_are_named(tmp_path):
    pytest.importorskip("numpy")
    source = """
        import numpy
        made = [numpy.zeros(3) for _ in range(400)]
        del made
        kept = [numpy.zeros(3) for _ in range(70)]
    """
    events, metadata = recording_of(tmp_path, source)
    assert freed(events, metadata)["numpy.ndarray"] >= 400
    assert live(events, metadata)["numpy.ndarray"] >= 70


def test_the_state_of_the_collector_is_in_the_metadata(tmp_path):
    with replay.record(tmp_path / "trace.parquet", types=True):
        pass
    collector = replay.open_source(tmp_path / "trace.parquet").metadata.collector
    assert isinstance(collector, Collector)
    assert (collector.thresholds, collector.enabled) == (gc.get_threshold(), gc.isenabled())
    assert 0 < collector.old_objects < len(gc.get_objects()) * 2


def test_without_types_a_recording_has_no_types(tmp_path):
    with replay.record(tmp_path / "trace.parquet"):
        kept = [[] for _ in range(100)]
    events, metadata = events_in(tmp_path / "trace.parquet"), replay.open_source(tmp_path / "trace.parquet").metadata
    assert (events.type, metadata.types, metadata.collector, len(kept)) == (None, (), None, 100)
    assert not (events.op == Op.LIVE_OBJECT).any()
    assert not events.size[(events.op == Op.GC_START) | (events.op == Op.GC_END)].any()


def test_a_clean_recording_with_types_has_the_addresses_of_the_model(tmp_path):
    source = "kept = [{str(number): [number]} for number in range(20_000)]\nlost = [[kept] for _ in kept]\ndel lost"
    recording_of(tmp_path, source, "--clean")
    agreement = verify_recording(replay.open_source(tmp_path / "trace.parquet"))
    assert agreement.arena_difference is None
    assert agreement.addresses_equal == agreement.addresses_compared > 20_000


def test_the_program_makes_the_same_calls_with_types_as_without(tmp_path):
    source = "import gc, replay; gc.disable(); replay.mark('begin'); kept = [{str(at): [at]} for at in range(3_000)]"
    made = []
    for options in ((), ("--types",)):
        (tmp_path / "program.py").write_text(source)
        environment = os.environ | {"PYTHONHASHSEED": "0"}
        record(*options, "--force", "program.py", cwd=tmp_path, env=environment, check=True)
        events = events_in(tmp_path / "trace.parquet")
        begin, end = np.flatnonzero(events.op == Op.MARK)
        made.append(events.where(slice(begin, end)))
    first, second = (np.stack([each.op, each.domain, each.size]) for each in made)
    # In another order: the recorder's start leaves other objects in free lists.
    assert Counter(zip(*first.tolist(), strict=True)) == Counter(zip(*second.tolist(), strict=True))


def test_call_sites_and_types_are_recorded_together(tmp_path):
    events, metadata = recording_of(tmp_path, OBJECTS, "--sites")
    assert live(events, metadata)["__main__.X"] == 500
    assert (events.site[events.op == Op.MALLOC] < len(metadata.sites)).any()


def test_a_program_that_is_killed_has_the_types_of_what_it_freed(tmp_path):
    source = "class X: pass\nmade = [X() for _ in range(400)]\ndel made\nimport os\nos._exit(0)"
    events, metadata = recording_of(tmp_path, source)
    assert (freed(events, metadata)["__main__.X"], live(events, metadata)) == (400, Counter())


def test_forked_children_have_types(tmp_path):
    source = """
        import os
        class X: pass
        if not (child := os.fork()):
            made = [X() for _ in range(400)]
            del made
        else:
            os.waitpid(child, 0)
    """
    recording_of(tmp_path, source, "--follow-fork")
    (path,) = tmp_path.glob("trace.*.parquet")
    assert freed(events_in(path), replay.open_source(path).metadata)["__main__.X"] == 400


def test_info_and_head_show_types(tmp_path, replay):
    recording_of(tmp_path, OBJECTS)
    path = tmp_path / "trace.parquet"
    code, text, _ = replay("trace", "info", path, "--full")
    assert code == 0
    assert [line for line in ("types by bytes", "types by calls", "__main__.X") if line not in text] == []
    info = json.loads(replay("trace", "info", path, "--json")[1])
    shown = {entry["type"]: entry for entry in (*info["types_by_bytes"], *info["types_by_calls"])}
    assert (shown["__main__.X"]["live"], shown["__main__.X"]["calls"]) == (500, 800)
    assert info["calls_with_type"] <= sum(info["requests_by_size"].values())
    head = replay("trace", "head", path, "-n", 1_000_000, "--json")[1]
    assert any(row["op"] == "live_object" for row in json.loads(head))


def test_edits_keep_types(tmp_path, replay):
    recording_of(tmp_path, OBJECTS)
    path = tmp_path / "trace.parquet"
    edits = (
        (("trace", "merge", path, path), 2),
        (("trace", "filter", path, "--max-size", 1000), 1),
        (("trace", "cut", path, "--from", "0s"), 1),
    )
    for number, (command, times) in enumerate(edits):
        output = tmp_path / f"edited{number}.parquet"
        code, _, error = replay(*command, "-o", output)
        assert code == 0, error
        info = json.loads(replay("trace", "info", output, "--json")[1])
        shown = {entry["type"]: entry for entry in (*info["types_by_bytes"], *info["types_by_calls"])}
        assert (shown["__main__.X"]["live"], shown["__main__.X"]["calls"]) == (500 * times, 800 * times)
