"""What lives at the end of an object program: the model's objects are those of real interpreters, one by one in number,
with the sizes of sys.getsizeof() and tracked as gc.is_tracked() says."""

import json
from collections import Counter
from itertools import takewhile

import numpy as np
import pytest

from replay.jit.arrays import FULL
from replay.objects import ObjectProgram, load_objects
from replay.objects.code import compile_program
from replay.objects.heap import IMMORTAL
from replay.objects.kinds import Kind
from replay.objects.language import Bind, Drop, Program
from replay.objects.loop import run_machine
from replay.objects.machine import Machine
from replay.objects.rules import default_thresholds
from replay.objects.running import _with_room, new_machine
from replay.objects.twin import INCREMENT, MULTIPLIER, write_twin
from replay.support.bundled_files import find_workload
from replay.trace import Op
from replay.verification.object_oracles import find_object_oracles, record_objects
from replay.verification.objects import version_of

PROGRAMS = (
    "records",
    "dict-growth",
    "identity-map",
    "json-nesting",
    "lru-cache",
    "parent-trees",
    "observers",
)
INTERPRETERS = find_object_oracles()
TYPES = {
    Kind.INT: "int", Kind.FLOAT: "float", Kind.TEXT: "str", Kind.BYTES: "bytes", Kind.TUPLE: "tuple", Kind.LIST: "list",
    Kind.DICT: "dict", Kind.SET: "set", Kind.INSTANCE: "slots", Kind.OPEN: "open", Kind.METHOD: "method",
}  # fmt: skip
UNSIZED = ("open", "dict")
"""Types whose sizes depend on tables that several objects share, or on inline values: only their number is compared."""
SCRIPT = """\
import gc, json, sys, types
gc.disable()
def choices(seed):
    for _ in range({choices}):
        seed = (seed * {multiplier} + {increment}) & 0xFFFFFFFF
        yield seed >> 24
CHOICES = iter(bytes(choices({seed})))
LETTER, BYTE = "x", b"x"
{twin}
NAMES = {{kind: kind.__name__ for kind in (int, float, str, bytes, tuple, list, dict, set, types.MethodType)}}
for kind in [each for each in globals().values() if isinstance(each, type) and each.__module__ == "__main__"]:
    NAMES[kind] = "slots" if "__slots__" in vars(kind) else "open"
def constants(value):
    yield value
    if type(value) in (tuple, frozenset):
        for each in value:
            yield from constants(each)
    if isinstance(value, types.CodeType):
        for each in (value.co_consts, value.co_names, value.co_varnames):
            yield from constants(each)
KEPT = []
for each in list(globals().values()):
    if isinstance(each, type):
        for inner in vars(each).values():
            if hasattr(inner, "__code__"):
                KEPT += constants(inner.__code__)
    if hasattr(each, "__code__"):
        KEPT += constants(each.__code__)
ASIDE = set(map(id, KEPT))
def look(frame):
    gc.disable()
    found = gc.get_objects()
    rest, seen = [*frame.f_locals.values(), *found], set()
    aside = {{id(found), id(rest), id(seen), id(frame.f_locals), id(globals()), *ASIDE}}
    rows = []
    while rest:
        each = rest.pop()
        if id(each) in aside or id(each) in seen or type(each) not in NAMES:
            continue
        if type(each) in (str, bytes, tuple) and len(each) < (2 if type(each) is not tuple else 1):
            continue
        if type(each) is int and -6 < each < {small_ints}:
            continue
        seen.add(id(each))
        rows.append((NAMES[type(each)], gc.is_tracked(each), sys.getsizeof(each)))
        rest += gc.get_referents(each)
    json.dump(rows, open({path!r}, "w"))
gc.set_threshold({thresholds})
gc.collect()
gc.freeze()
gc.collect()
gc.enable()
main()
"""


def at_the_end_of_main(program: ObjectProgram, release: tuple[int, ...]) -> tuple[Machine, dict[int, int], int]:
    """Runs a program in the model up to the end of `main`; returns its machine, and the bytes of each live block."""
    written = program.program
    stops = [*written.main, Bind(bind={"stopped": 0}), Drop(drop=["stopped", "stopped"])]
    stopping = written.model_copy(update={"main": stops})
    code, _ = compile_program(Program.model_validate(stopping.model_dump(by_alias=True)))
    machine, sizes = new_machine(code, release, stopping), {}
    status = FULL
    while status == FULL:
        status = run_machine(machine)
        for op, _, block, size, _ in machine.heap.events[: machine.heap.counts[0].events].tolist():
            if op in (Op.MALLOC, Op.CALLOC, Op.REALLOC):
                sizes[block] = size
        machine.heap.counts[0].events = 0
        if status == FULL:
            machine = _with_room(machine)
    assert machine.state[0].mistake == 1  # a variable that is not bound
    return machine, sizes, int(machine.state[0].choices)


def model_rows(machine: Machine, sizes: dict[int, int]) -> Counter[tuple[str, bool, int]]:
    heap = machine.heap
    objects = heap.objects[: heap.counts[0].objects]
    live = (objects["refs"] > 0) & (objects["refs"] < IMMORTAL // 2) & np.isin(objects["kind"], list(TYPES))
    rows = Counter()
    for entry in objects[live]:
        name = TYPES[Kind(entry["kind"])]
        size = sizes[entry["block"]] + sizes.get(entry["vector"] if entry["kind"] in (Kind.LIST, Kind.SET) else 0, 0)
        if name == "int":  # requests are for one digit at least
            size = 24 + 4 * max(1, -(-int(entry["length"]).bit_length() // 30))
        rows[name, bool(entry["next"]), 0 if name in UNSIZED else size] += 1
    return rows


@pytest.mark.parametrize("version", INTERPRETERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_live_objects_are_those_of_the_interpreter_with_their_sizes_and_tracked_alike(name, version, tmp_path):
    oracle, program = INTERPRETERS[version], load_objects(find_workload(name))
    release = version_of(oracle)
    machine, sizes, choices = at_the_end_of_main(program, release)
    lines = write_twin(program.program).splitlines()
    after = takewhile(lambda line: line.startswith(" "), lines[lines.index("def main():") + 1 :])
    lines.insert(lines.index("def main():") + 1 + len([*after]), "    look(sys._getframe())")
    path = tmp_path / "rows"
    script = SCRIPT.format(
        twin="\n".join(lines), seed=program.program.seed & 0xFFFFFFFF, choices=choices, multiplier=MULTIPLIER,
        increment=INCREMENT,
        thresholds=", ".join(map(str, program.program.collector.thresholds or default_thresholds(release))),
        small_ints=int(machine.heap.rules[0].small_ints), path=str(path),
    )  # fmt: skip
    record_objects(oracle, script)
    real = Counter(
        (kind, tracked, 0 if kind in UNSIZED else size) for kind, tracked, size in json.loads(path.read_text())
    )
    assert real == model_rows(machine, sizes)
    assert real
