"""Generators of object programs: their memory, their end, and what the collector does with them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from generator_programs import random_calling_program, random_generator_program, random_pipeline_program
from hypothesis import given
from hypothesis import strategies as st
from object_programs import events, object_program, references

from replay.jit.arrays import DONE
from replay.objects.code import compile_program
from replay.objects.code_units import yield_places
from replay.objects.flow import has_yield
from replay.objects.language import Program
from replay.objects.loop import run_machine
from replay.objects.rules import RELEASES
from replay.objects.running import new_machine
from replay.objects.stack_sizes import stack_size
from replay.objects.twin import write_twin
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles, record_objects
from replay.verification.objects import simulate, verify_objects, version_of

INTERPRETERS = find_object_oracles()
MALLOC, FREE = Op.MALLOC, Op.FREE
TEXT = {"do": [{"bind": {"text": {"letters": 10}}}, {"yield": 1}]}
"""A generator function with one variable and a stack of two values."""
CREATE, NEXT, DROP = {"bind": {"g": {"call": "text"}}}, {"next": "g", "default": 0}, {"drop": ["g"]}


def sizes(release, *main, **functions):
    """The sizes of what a program allocates, those of what it frees as negative numbers."""
    found = events(release, *main, functions={"text": TEXT, **functions})
    return [size if op != FREE else -size for op, domain, size, _ in found if domain == Domain.OBJ]


# Sequences computed by hand


@pytest.mark.parametrize(
    ("release", "created", "dropped"),
    [
        # the frames of main and of the generator, the generator, and the text. A traceback; the frames are kept
        ((3, 9), [384 + 8 * 4, 384 + 8 * 3, 112, 59], [56, -59, -56, -112]),
        ((3, 10), [376 + 8 * 4, 376 + 8 * 3, 104, 59], [56, -59, -56, -104]),
        # a frame object and a traceback
        ((3, 11), [168 + 8 * 3, 59], [160, 56, -59, -160, -56, -192]),
        # an exception, a frame object, a traceback; the frame object of main (its stack has four values) remains
        ((3, 12), [160 + 8 * 3, 51], [88, 160, 56, 176, -51, -160, -56, -88, -184, -176]),
        ((3, 13), [160 + 8 * 3, 51], [-51, -184]),
        ((3, 14), [168 + 8 * 3, 51], [-51, -192]),
    ],
)
def test_a_suspended_generator_that_is_dropped_dies_after_its_variables(release, created, dropped):
    assert sizes(release, CREATE, NEXT, DROP) == created + dropped


@pytest.mark.parametrize(
    ("release", "dropped"),
    [((3, 11), [160, 56, -160, -56, -192]), ((3, 12), [-184]), ((3, 13), [-184]), ((3, 15), [-192])],
)
def test_a_generator_that_never_ran_is_dropped_without_an_exception_from_3_12_on(release, dropped):
    assert sizes(release, CREATE, DROP)[1:] == dropped


@pytest.mark.parametrize("release", [(3, 11), (3, 12), (3, 13), (3, 15)])
def test_the_variables_of_a_generator_that_ends_die_before_it(release):
    loop = {"each": "g", "as": "x", "do": [{"bind": {"y": "x"}}]}
    text, size = (59 if release == (3, 11) else 51), {11: 192, 12: 184, 13: 184, 15: 192}[release[1]]
    assert sizes(release, CREATE, loop) == [size, text, -text, -size]
    assert sizes(release, CREATE, NEXT, NEXT, NEXT) == [size, text, -text, -size]


def test_a_generator_function_keeps_the_frame_of_one_finished_generator_up_to_3_10():
    loop = {"each": "g", "as": "x", "do": [{"bind": {"y": "x"}}]}
    frame, generator = 376 + 8 * 3, 104
    assert sizes((3, 10), CREATE, loop, CREATE, loop)[1:] == [
        frame, generator, 59, -59, generator, -generator, 59, -59, -generator,
    ]  # fmt: skip


@pytest.mark.parametrize(("release", "clears"), [((3, 13, 0), False), ((3, 13), True), ((3, 15), True)])
def test_closing_a_generator_that_never_ran_frees_its_arguments_after_3_13_0(release, clears):
    function = {"parameters": ["a"], "do": [{"yield": "a"}]}
    create = {"bind": {"g": {"call": "f", "with": [{"letters": 10}]}}}
    found = sizes(release, create, {"close": "g"}, {"bind": {"x": {"letters": 20}}}, {"drop": ["g"]}, f=function)
    assert (found.index(-51) < found.index(61)) is clears


@pytest.mark.parametrize(
    ("release", "first"),
    [((3, 10), "item"), ((3, 11), "item"), ((3, 12), "item"), ((3, 13), "text"), ((3, 14), "item")],
)
def test_the_iterator_of_a_loop_dies_before_the_variables_except_in_3_13(release, first):
    item, text = {"letters": 20}, {"bind": {"t": {"letters": 10}}}
    loop = {"each": "xs", "as": "x", "do": [{"bind": {"xs": 0, "x": 0}}, {"yield": 1}]}
    function = {"do": [{"bind": {"xs": {"list": [0, item]}}}, text, loop]}
    found = sizes(release, {"bind": {"g": {"call": "f"}}}, NEXT, DROP, f=function)
    header = 49 if release <= (3, 11) else 41
    order = {"item": found.index(-header - 20), "text": found.index(-header - 10)}
    assert min(order, key=order.__getitem__) == first


def test_the_value_of_a_generator_outlives_it_in_the_loop_variable():
    function = {"do": [{"yield": {"letters": 10}}, {"yield": {"letters": 20}}]}
    loop = {"each": "g", "as": "x", "do": [{"bind": {"y": 0}}]}
    assert sizes((3, 13), {"bind": {"g": {"call": "f"}}}, loop, f=function) == [176, 51, 61, -51, -176, -61]


# The collector


@pytest.mark.parametrize("release", RELEASES)
def test_a_cycle_through_a_suspended_generator_is_found(release):
    function = {"parameters": ["node"], "do": [{"yield": 1}]}
    make = {"do": [{"bind": {"n": {"new": "S"}}}, {"bind": {"g": {"call": "f", "with": ["n"]}}}, {"set": {"n.p": "g"}},
                   NEXT]}  # fmt: skip
    document = {"classes": {"S": {"slots": ["p"]}}, "functions": {"f": function, "make": make}}
    program = object_program({**document, "main": [{"call": "make"}, {"collect": 0}]})
    found, _ = simulate(program, release)
    start = found["op"].tolist().index(Op.GC_START)
    freed = found["size"][start:][found["op"][start:] == FREE].tolist()
    generator = {8: 112, 9: 112, 10: 104, 11: 184, 12: 184, 13: 184}.get(release[1], 192)
    assert 40 in freed
    assert generator in freed or generator - 8 in freed


def seen_generators(times):
    """A program in which collections see more or less of a generator that runs: its variable `x` refers to itself and
    is older than the generator, and it survives before or after a younger object."""
    work = {"do": [{"bind": {"xs": {"list": []}}}, {"collect": 0}]}
    inner = {"do": [{"yield": 1}, {"collect": 0}, {"yield": 2}, {"call": "work"}, {"yield": 3}]}
    loop = [{"each": "xs", "as": "v", "do": [{"yield": "v"}]}, {"call": "work"}, {"yield": 5}]
    calls = [{"bind": {"v": {"next": "xs"}}}, {"yield": "v"}] * 3
    body = []
    for outer, most in (("loop", 4), ("calls", 3)):
        for count in range(1, most + 1):
            body += [
                {"bind": {"x": {"new": "S"}, "y": {"new": "T"}}},
                {"set": {"x.p": "x", "y.p": "y"}},
                {"bind": {"xs": {"call": "inner"}}},
                {"bind": {"g": {"call": outer, "with": ["xs", "x"]}}},
                {"bind": {"x": 0}},
                *[{"next": "g"}] * count,
                {"bind": {"y": 0, "g": 0, "xs": 0}},
                {"collect": 2},
            ]
    outer = {"parameters": ["xs", "x"]}
    functions = {"work": work, "inner": inner, "loop": {**outer, "do": loop}, "calls": {**outer, "do": calls}}
    classes = {"S": {"slots": ["p"]}, "T": {"slots": ["p", "q"]}}
    main = [{"repeat": times, "as": "i", "do": body}]
    return object_program({"classes": classes, "functions": functions, "main": main, "collector": {"enabled": False}})


def test_in_3_12_a_collection_sees_the_variables_of_a_caller_in_specialised_loops_only():
    found, _ = simulate(seen_generators(1), (3, 12))
    starts = [index for index, op in enumerate(found["op"]) if op == Op.GC_START and found["size"][index] == 2]
    orders = []
    for start in starts:
        freed = [size for op, size in found[["op", "size"]][start:].tolist() if op == FREE and size in (40, 48)]
        orders.append(freed[:2])
    # the second run of the loop is specialised; then the generator itself runs, and calls a function; next() is not
    assert orders == [[40, 48], [48, 40], [48, 40], [48, 40], [40, 48], [40, 48], [40, 48]]


@given(st.integers(0, 1000), st.sampled_from(RELEASES))
def test_reference_counts_are_the_number_of_references(seed, release):
    program = random_generator_program(seed)
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:
        counted, found = references(machine)
        assert counted == found


# Mistakes


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ([CREATE, {"next": "g"}, {"next": "g"}], "main.2: the generator has ended"),
        ([{"bind": {"g": 1}}, {"next": "g"}], "main.1: expected a generator"),
        ([{"bind": {"g": 1}}, {"close": "g"}], "main.1: expected a generator"),
        ([{"bind": {"s": {"new": "S"}}}, {"set": {"s.p": {"call": "again", "with": ["s"]}}}, {"next": "s.p"}],
         "functions.again.do.0: the generator is already running"),
        ([{"bind": {"xs": {"list": [1]}}}, {"repeat": 2, "as": "i", "do": [
            {"bind": {"o": {"call": "outer", "with": ["xs"]}}}, {"next": "o"}, {"next": "o", "default": 0},
            {"bind": {"xs": {"call": "inner"}}}]}],
         "functions.outer.do.0: in 3.12 and 3.13, it is not known what a collection sees of a loop .*"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_running_program_is_reported_with_its_place(statements, message):
    again = {"parameters": ["s"], "do": [{"next": "s.p"}, {"yield": 1}]}
    inner = {"do": [{"collect": 0}, {"yield": 1}]}
    outer = {"parameters": ["xs"], "do": [{"each": "xs", "as": "x", "do": [{"yield": "x"}]}]}
    functions = {"text": TEXT, "again": again, "inner": inner, "outer": outer}
    with pytest.raises(WorkloadError, match=f"^{message}$"):
        events((3, 12), *statements, functions=functions, classes={"S": {"slots": ["p"]}})


@pytest.mark.parametrize(
    ("functions", "main", "problem"),
    [
        ({}, [{"yield": 1}], (("main", 0), "`yield` is supported in the program's functions only")),
        ({"f": {"do": [{"yield": 1}, {"return": 1}]}}, [{"bind": {"x": 0}}],
         (("functions", "f", "do", 1), "a generator function cannot return a value")),
        ({"f": {"do": [{"yield": 1}]}}, [{"bind": {"x": "f"}}],
         (("main", 0), "'f' is a generator function, which can only be called by its name")),
        ({"f": {"do": [{"yield": 1}]}}, [{"sleep": "1ms"}],
         (("functions", "f"), "generators are not supported in a program with threads yet")),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(functions, main, problem):
    document = {"kind": "objects", "functions": functions, "main": main}
    assert compile_program(Program.model_validate(document)) == (None, [problem])


def test_a_yield_whose_place_in_3_12_is_not_known_is_refused_when_its_generator_is_closed():
    def program(statements):
        fill = [{"bind": {f"x{index}": 0}} for index in range(statements)]
        function = {"parameters": ["d"], "do": [*fill, {"if_key": 1, "in": "d", "do": [{"yield": 1}]}, {"yield": 1}]}
        create = {"bind": {"g": {"call": "f", "with": [{"set": [2]}]}}}
        return events((3, 12), create, NEXT, DROP, functions={"f": function})

    integers = [sum(size == 32 for _, _, size, _ in program(count)) for count in (100, 140)]
    assert integers == [0, 2]
    with pytest.raises(WorkloadError, match=r"^functions.f.do.123: in 3.12, it is not known what is allocated"):
        program(122)


def test_a_function_in_a_generator_function_is_refused():
    body = [{"define": "f", "do": [{"return": 1}]}, {"yield": 1}]
    with pytest.raises(AssertionError, match="`define` is not supported in a generator function"):
        object_program({"functions": {"g": {"do": body}}, "main": [{"bind": {"x": {"call": "g"}}}]})


def test_methods_and_generators_call_each_other():
    methods = {"each": {"do": [{"bind": {"g": {"call": "texts", "with": ["self"]}}}, {"return": {"next": "g"}}]}}
    methods["text"] = {"do": [{"return": {"letters": 60}}]}
    functions = {"texts": {"parameters": ["k"], "do": [{"yield": {"call": "k.text"}}]}}
    main = {"bind": {"k": {"new": "K"}}}, {"bind": {"x": {"call": "k.each"}}}
    found = events((3, 13), *main, functions=functions, classes={"K": {"slots": ["p"], "methods": methods}})
    generator = 160 + 8 * (1 + 2)
    assert [(op, size) for op, _, size, _ in found] == [
        (MALLOC, 40),
        (MALLOC, generator),
        (MALLOC, 101),
        (FREE, generator),
        (FREE, 40),
        (FREE, 101),
    ]


# Real interpreters


def system(test):
    """Marks a test of one real interpreter."""
    missing = pytest.mark.skipif(not INTERPRETERS, reason="no libpython from 3.8 on: see `replay verify --list`")
    return pytest.mark.system(missing(pytest.mark.parametrize("version", INTERPRETERS)(test)))


def asked(version: str, programs: Sequence[Program], expression: str, folder: Path):
    """What an interpreter says about each function of each program's twin."""
    script = "from allocation_log import start, stop\nfrom types import coroutine\nimport dis, json\nfound = []\n"
    for program in programs:
        names = ", ".join([*program.functions, "main"])
        script += f"{write_twin(program)}\nfound.append([{expression} for f in ({names},)])\n"
    script += f"start()\nstop()\nwith open({str(folder / 'found')!r}, 'w') as file:\n    json.dump(found, file)\n"
    record_objects(INTERPRETERS[version], script)
    return json.loads((folder / "found").read_text())


def bodies_of(program: Program):
    return [*(function.do for function in program.functions.values()), program.main]


@system
def test_generator_programs_request_the_memory_that_real_interpreters_request(version):
    for seed in range(12):
        for write in (random_pipeline_program, random_calling_program, random_generator_program):
            assert verify_objects(write(seed), INTERPRETERS[version]).difference == "", f"seed {seed} of {write}"


def nested_generators():
    """A program that drops chains of 120 generators, each a variable or the iterator of a loop of the next one, with
    frequent collections."""
    row = {"list": ["i", {"letters": 9}]}
    link = [{"bind": {"own": {"letters": 20}}}, {"yield": 1}, {"yield": 2}]
    loop = [{"each": "x", "as": "y", "do": [{"yield": "y"}]}]
    functions = {name: {"parameters": ["x", "row"], "do": do} for name, do in (("link", link), ("loop", loop))}
    inner = {"list": ["x", {"tuple": [{"letters": 5}]}]}
    longer = {"bind": {"x": {"call": "link", "with": [inner, {"dict": [[1, "x"]]}]}}}
    links = [
        {"bind": {"x": {"call": "link", "with": ["x", row]}}},
        {"choose": 0.8, "do": [{"next": "x"}]},
        {"choose": 0.5, "do": [longer]},
    ]
    loops = [{"bind": {"x": {"call": "loop", "with": ["x", row]}}}]
    start = {"bind": {"x": {"list": [1, 2, 3, 4]}}}
    main = [
        *[start, {"repeat": 120, "as": "i", "do": links}, {"drop": ["x"]}],
        *[start, {"repeat": 120, "as": "i", "do": loops}, {"next": "x"}, {"drop": ["x"]}],
    ]
    body = [{"repeat": 3, "as": "k", "do": main}]
    return object_program({"functions": functions, "main": body, "collector": {"thresholds": [7, 2, 1]}})


@system
def test_nested_generators_end_as_in_real_interpreters(version):
    assert verify_objects(nested_generators(), INTERPRETERS[version]).difference == ""


@system
def test_collections_see_what_they_see_in_real_interpreters(version):
    assert verify_objects(seen_generators(12), INTERPRETERS[version]).difference == ""


@system
def test_stack_sizes_are_those_of_the_compiler(version, tmp_path):
    release = version_of(INTERPRETERS[version])[:2]
    programs = [
        write(seed).program for write in (random_pipeline_program, random_generator_program) for seed in range(10)
    ]
    sizes_of = asked(version, programs, "f.__code__.co_stacksize", tmp_path)
    for number, (program, found) in enumerate(zip(programs, sizes_of, strict=True)):
        expected = [stack_size(body, release, has_yield(body)) for body in bodies_of(program)]
        assert found == expected, f"seed {number % 10}"


@pytest.mark.system
@pytest.mark.parametrize("version", [version for version in INTERPRETERS if version.startswith("3.12.")])
def test_places_of_yields_are_those_of_the_compiler_of_3_12(version, tmp_path):
    places = "[i.offset // 2 for i in dis.get_instructions(f) if i.opname == 'YIELD_VALUE']"
    programs = [random_generator_program(seed).program for seed in range(10)]
    for program, places_of in zip(programs, asked(version, programs, places, tmp_path), strict=True):
        for body, found in zip(bodies_of(program), places_of, strict=True):
            for place, (least, largest) in zip(found, yield_places(body) if has_yield(body) else [], strict=True):
                assert least <= place <= largest
