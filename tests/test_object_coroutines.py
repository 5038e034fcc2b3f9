"""Coroutines and `yield from` in object programs: their memory, their end, and what the collector does with them."""

import pytest
from coroutine_programs import random_coroutine_program, random_delegation_program
from hypothesis import given
from hypothesis import strategies as st
from object_programs import events, object_program, references
from test_object_generators import asked, bodies_of, system

from replay.jit.arrays import DONE
from replay.objects.code import compile_program
from replay.objects.flow import has_yield
from replay.objects.language import Program
from replay.objects.layout import function_bounds
from replay.objects.loop import run_machine
from replay.objects.offsets import send_places
from replay.objects.rules import RELEASES
from replay.objects.running import new_machine
from replay.objects.stack_sizes import stack_size
from replay.objects.twin import write_twin
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import simulate, verify_objects, version_of

INTERPRETERS = find_object_oracles()
FREE = Op.FREE
PAUSE = {"coroutine": True, "do": [{"yield": 1}]}
"""A generator that can be awaited, with a stack of one value; of two from 3.12 on."""
WAIT = {"coroutine": True, "do": [{"await": {"call": "pause"}}]}
"""A coroutine without variables. Its stack has two values, from 3.12 on three, in 3.15 four."""
FUNCTIONS = {"pause": PAUSE, "wait": WAIT}
CREATE, STEPS = {"bind": {"c": {"call": "wait"}}}, {"bind": {"w": {"steps": "c"}}}
NEXT, DROP = {"next": "w"}, {"drop": ["w", "c"]}


def sizes(release, *main, **functions):
    """The sizes of what a program allocates, those of what it frees as negative numbers."""
    found = events(release, *main, functions={**FUNCTIONS, **functions})
    return [size if op != FREE else -size for op, domain, size, _ in found if domain == Domain.OBJ]


# Sequences computed by hand


@pytest.mark.parametrize(
    ("release", "started", "dropped"),
    [
        # the frames of main and of the coroutine, the coroutine, the tuple of a call, and its steps; the frame of the
        # pause, and the pause. For each of the two a traceback; frames are kept
        ((3, 10), [376 + 8 * 4, 376 + 8 * 2, 112, 48, 40, 376 + 8, 104], [-40, 56, -56, 56, -104, -56, -112]),
        # a frame object and a traceback for each
        ((3, 11), [184, 48, 40, 176], [-40, 144, 56, -144, -56, 152, 56, -176, -152, -56, -184]),
        # an exception before these; the frame object of main remains, with two variables and a stack of three
        ((3, 12), [184, 48, 40, 176],
         [-40, 88, 152, 56, 176, -152, -56, -88, 88, 160, 56, -176, -160, -56, -88, -184, -176]),
        # the pause, which waits for nothing, is closed without an exception
        ((3, 13, 0), [184, 48, 40, 176], [-40, 88, 176, 56, -176, 192, -176, -56, -88, -184, -192]),
        ((3, 13), [184, 48, 40, 176], [-40, 88, 176, 56, -176, -176, -56, -88, -184]),
        ((3, 14), [192, 56, 40, 184], [-40, 88, 192, 56, -184, -192, -56, -88, -192]),
        ((3, 15), [200, 56, 40, 184], [-40, 88, 200, 56, -184, -200, -56, -88, -200]),
    ],
)  # fmt: skip
def test_an_unfinished_coroutine_that_is_dropped_is_closed_after_what_it_awaits(release, started, dropped):
    assert sizes(release, CREATE, STEPS, NEXT, DROP) == started + dropped


@pytest.mark.parametrize(
    ("release", "sequence"),
    [
        ((3, 11), [184, 48, 40, 176, -176, -40, -184]),
        ((3, 13), [184, 48, 40, 176, -176, -40, -184]),
        ((3, 15), [200, 56, 40, 184, -184, -40, -200]),
    ],
)
def test_what_a_coroutine_awaits_dies_when_it_ends(release, sequence):
    finish = {"next": "w", "default": 0}
    assert sizes(release, CREATE, STEPS, NEXT, finish, DROP) == sequence
    assert sizes(release, CREATE, STEPS, {"each": "w", "as": "x", "do": [{"bind": {"y": "x"}}]}, DROP) == sequence


def test_the_value_of_await_is_what_the_coroutine_returns():
    # the text lives from its creation in the inner coroutine to the end of the outer one
    inner = {"coroutine": True, "do": [{"bind": {"t": {"letters": 10}}}, {"return": "t"}]}
    outer = {"coroutine": True, "do": [{"bind": {"y": {"await": {"call": "inner"}}}}, {"await": {"call": "pause"}}]}
    start = [{"bind": {"c": {"call": "outer"}}}, STEPS, NEXT, {"next": "w", "default": 0}]
    found = sizes((3, 13), *start, inner=inner, outer=outer)
    assert found == [192, 48, 40, 184, 51, -184, 176, -176, -51, -192, -40]


def test_each_coroutine_in_flight_keeps_its_own_variables_until_it_ends():
    request = {"coroutine": True, "parameters": ["n"],
               "do": [{"bind": {"t": {"letters": "n"}}}, {"await": {"call": "pause"}}]}  # fmt: skip
    create = {"bind": {"w": {"steps": {"call": "request", "with": [{"sum": ["i", 100]}]}}}}
    start = {"repeat": 300, "as": "i", "do": [create, NEXT, {"append": "w", "to": "tasks"}]}
    finish = {"each": "tasks", "as": "w", "do": [{"next": "w", "default": 0}]}
    found = sizes((3, 13), {"bind": {"tasks": {"list": []}}}, start, finish, request=request)
    texts = [size for size in found if 41 + 100 <= abs(size) < 41 + 400 and abs(size) not in (176, 200)]
    lengths = [41 + 100 + i for i in range(300) if 41 + 100 + i not in (176, 200)]
    assert texts == [*lengths, *(-size for size in lengths)]
    assert (found.count(200), found.count(-200)) == (300 + 1, 300 + 1)  # a coroutine, or the text of this size


@pytest.mark.parametrize(("release", "items"), [((3, 10), 48), ((3, 13), 48), ((3, 15), 0)])
def test_delegating_to_a_list_needs_its_iterator_only(release, items):
    delegate = {"parameters": ["xs"], "do": [{"yield_from": "xs"}]}
    make = [{"bind": {"xs": {"list": [1, 2]}}}, {"bind": {"g": {"call": "delegate", "with": ["xs"]}}}]
    found = [sizes(release, *make, *[{"next": "g"}] * count, delegate=delegate) for count in range(2)]
    without, with_iterator = found
    assert with_iterator.count(48) - without.count(48) == (items > 0)


def test_a_generator_passes_on_what_the_one_that_it_delegates_to_yields():
    texts = {"do": [{"yield": {"letters": 10}}, {"yield": {"letters": 20}}]}
    delegate = {"parameters": ["g"], "do": [{"yield_from": "g"}, {"yield": {"letters": 30}}]}
    loop = {"each": "d", "as": "x", "do": [{"bind": {"y": 0}}]}
    make = [{"bind": {"d": {"call": "delegate", "with": [{"call": "texts"}]}}}, loop, {"drop": ["x"]}]
    # each text dies when the next one is bound, and the inner generator when the outer one ends
    found = sizes((3, 13), *make, texts=texts, delegate=delegate)
    assert found == [176, 192, 51, 61, -51, 71, -61, -176, -71, -192]


# The collector


@pytest.mark.parametrize("release", RELEASES)
def test_a_cycle_through_a_coroutine_and_its_steps_is_found(release):
    hold = {"coroutine": True, "parameters": ["node"], "do": [{"await": {"call": "pause"}}]}
    make = {"do": [{"bind": {"n": {"new": "S"}}}, {"bind": {"w": {"steps": {"call": "hold", "with": ["n"]}}}},
                   {"set": {"n.p": "w"}}, NEXT]}  # fmt: skip
    document = {"classes": {"S": {"slots": ["p", "q"]}}, "functions": {**FUNCTIONS, "hold": hold, "make": make}}
    program = object_program({**document, "main": [{"call": "make"}, {"collect": 0}]})
    found, _ = simulate(program, release)
    start, end = (found["op"].tolist().index(op) for op in (Op.GC_START, Op.GC_END))
    freed = found["size"][start:end][found["op"][start:end] == FREE].tolist()
    coroutine = {8: 120, 9: 120, 10: 112, 11: 192, 12: 192, 13: 192, 14: 200, 15: 208}[release[1]]
    pause = {8: 112, 9: 112, 10: 104, 11: 176, 12: 176, 13: 176}.get(release[1], 184)
    instance, steps = 48, 40
    died = dict.fromkeys(size for size in freed if size in (instance, steps, coroutine, pause))
    assert [*died] == [pause, steps, instance, coroutine]  # a frame object can have the size of the coroutine


def seen_coroutines(times):
    """A program in which collections see more or less of a coroutine, or a delegating generator, that runs: its
    variable `x` refers to itself and is older than it, and survives before or after a younger object."""
    work = {"do": [{"bind": {"xs": {"list": []}}}, {"collect": 0}]}
    inner = {"coroutine": True, "do": [{"yield": 1}, {"collect": 0}, {"yield": 2}, {"call": "work"}, {"yield": 3}]}
    wait = {"coroutine": True, "do": [{"await": {"call": "inner"}}, {"call": "work"}]}
    outer = {"coroutine": True, "parameters": ["x"], "do": [{"await": {"call": "wait"}}, {"await": {"call": "inner"}}]}
    delegate = [{"bind": {"g": {"call": "inner"}}}, {"yield_from": "g"}, {"call": "work"}, {"yield": 1}]
    made: list = [{"steps": {"call": "outer", "with": ["x"]}}, {"call": "delegate", "with": ["x"]}]
    body = []
    for value in made:
        for count in range(1, 7):
            body += [
                {"bind": {"x": {"new": "S"}, "y": {"new": "T"}}},
                {"set": {"x.p": "x", "y.p": "y"}},
                {"bind": {"g": value}},
                {"bind": {"x": 0}},
                *[{"next": "g", "default": 0}] * (count if value is made[0] or count < 5 else 4),
                {"bind": {"y": 0, "g": 0}},
                {"collect": 2},
            ]
    functions = {"work": work, "inner": inner, "wait": wait, "outer": outer}
    functions["delegate"] = {"parameters": ["x"], "do": delegate}
    classes = {"S": {"slots": ["p"]}, "T": {"slots": ["p", "q"]}}
    main = [{"repeat": times, "as": "i", "do": body}]
    return object_program({"classes": classes, "functions": functions, "main": main, "collector": {"enabled": False}})


@pytest.mark.parametrize(("release", "first"), [((3, 11), 40), ((3, 12), 48), ((3, 14), 48)])
def test_a_collection_sees_the_variables_of_a_coroutine_that_awaits_from_3_12_on(release, first):
    found, _ = simulate(seen_coroutines(1), release)
    starts = [index for index, op in enumerate(found["op"]) if op == Op.GC_START and found["size"][index] == 2]
    # what is not seen from a coroutine stays before the younger object
    freed = [size for op, size in found[["op", "size"]][starts[1] :].tolist() if op == FREE and size in (40, 48)]
    assert freed[0] == first


@given(st.integers(0, 1000), st.sampled_from(RELEASES), st.booleans())
def test_reference_counts_are_the_number_of_references(seed, release, has_coroutines):
    program = (random_coroutine_program if has_coroutines else random_delegation_program)(seed)
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:
        counted, found = references(machine)
        assert counted == found


def test_a_long_chain_of_coroutines_is_closed_from_its_end_on():
    found = sizes((3, 14), *chain(300), link=CHAIN)
    freed = [size for size in found if size < 0]
    assert found.count(88) == 300  # an exception for each, and none for the pause
    assert freed[0] == -184 or freed[1] == -184


CHAIN = {"coroutine": True, "parameters": ["inner"], "do": [{"await": "inner"}]}


def chain(length):
    """Statements that start a chain of coroutines, each of which awaits the one before, and drop it."""
    longer = {"bind": {"c": {"call": "link", "with": ["c"]}}}
    first = {"bind": {"c": {"call": "pause"}}}
    return [first, {"repeat": length, "as": "i", "do": [longer]}, STEPS, NEXT, {"bind": {"w": 0, "c": 0}}]


# Mistakes


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ([CREATE, {"drop": ["c"]}], "main.1: a coroutine dies here that never ran, .*"),
        ([CREATE], "main.0: a coroutine dies here that never ran, .*"),
        ([CREATE, STEPS, NEXT, {"next": "w", "default": 0}, NEXT],
         "main.4: a coroutine cannot be awaited, and its steps cannot be taken, after it has ended"),
        ([CREATE, {"close": "c"}, STEPS, NEXT], "main.3: a coroutine cannot be awaited, .* after it has ended"),
        ([CREATE, {"next": "c"}], "main.1: expected a generator"),
        ([CREATE, {"each": "c", "as": "x", "do": [{"bind": {"y": 0}}]}], "main.1: expected a list, tuple or dict"),
        ([{"bind": {"w": {"steps": {"call": "pause"}}}}], "main.0: expected a coroutine"),
        ([{"bind": {"w": {"steps": {"call": "twice", "with": [{"call": "wait"}]}}}}, NEXT, NEXT],
         "functions.twice.do.1: a coroutine cannot be awaited, .* after it has ended"),
        ([CREATE, STEPS, NEXT, {"bind": {"w": {"steps": {"call": "again", "with": ["c"]}}}}, NEXT],
         "functions.again.do.0: the coroutine is awaited by another one already"),
        ([{"bind": {"w": {"steps": {"call": "again", "with": [1]}}}}, NEXT],
         "functions.again.do.0: expected a coroutine, or a generator that can be awaited"),
        ([{"bind": {"w": {"steps": {"call": "value", "with": [1]}}}}, NEXT],
         "main.1: the coroutine returns a value here, which only `await` gets: its steps have none"),
        ([CREATE, {"bind": {"g": {"call": "delegate", "with": ["c"]}}}, {"next": "g"}],
         "functions.delegate.do.0: expected a list, tuple or dict"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_running_program_is_reported_with_its_place(statements, message):
    one = {"coroutine": True, "parameters": ["c"]}
    functions = {
        **FUNCTIONS,
        "twice": {**one, "do": [{"await": "c"}, {"await": "c"}]},
        "again": {**one, "do": [{"await": "c"}]},
        "value": {**one, "do": [{"return": "c"}]},
        "delegate": {"parameters": ["c"], "do": [{"yield_from": "c"}]},
    }
    with pytest.raises(WorkloadError, match=f"^{message}$"):
        events((3, 12), *statements, functions=functions)


@pytest.mark.parametrize("release", [(3, 9), (3, 10)])
def test_a_coroutine_that_returns_a_tuple_is_refused_up_to_3_9(release):
    pair = {"coroutine": True, "do": [{"bind": {"x": {"letters": 9}}}, {"return": {"tuple": ["x", "x"]}}]}
    use = {"coroutine": True, "do": [{"bind": {"x": {"await": {"call": "pair"}}}}]}
    main = [{"bind": {"w": {"steps": {"call": "use"}}}}, {"next": "w", "default": 0}]
    if release == (3, 10):
        assert 56 in sizes(release, *main, pair=pair, use=use)
        return
    with pytest.raises(WorkloadError, match=r"^functions.use.do.0: a coroutine that returns a tuple is not supported"):
        sizes(release, *main, pair=pair, use=use)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"main": [{"await": 1}]},
         (("main", 0), "`await` is supported in functions with `coroutine: true` and without `yield` only")),
        ({"functions": {"f": {"coroutine": True, "do": [{"yield": 1}, {"await": 1}]}}},
         (("functions", "f", "do", 1),
          "`await` is supported in functions with `coroutine: true` and without `yield` only")),
        ({"main": [{"bind": {"g": 1}}, {"yield_from": "g"}]},
         (("main", 1), "`yield_from` is supported in the program's functions only")),
        ({"functions": {"f": {"coroutine": True, "do": [{"yield": 1}, {"return": 1}]}}},
         (("functions", "f", "do", 1), "a generator function cannot return a value")),
        ({"functions": FUNCTIONS, "main": [{"bind": {"x": "wait"}}]},
         (("main", 0), "'wait' is a coroutine function, which can only be called by its name")),
        ({"classes": {"K": {"methods": {"m": {"coroutine": True, "do": [{"return": 1}]}}}}},
         (("classes", "K", "methods", "m", "coroutine"), "is supported in the program's functions only")),
        ({"functions": FUNCTIONS, "main": [{"sleep": "1ms"}]},
         (("functions", "pause", "coroutine"),
          "coroutines and `yield from` are not supported in a program with threads yet")),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(document, problem):
    document = {"kind": "objects", "main": [{"bind": {"z": 0}}], **document}
    _, problems = compile_program(Program.model_validate(document))
    assert problem in problems


def test_the_twin_declares_coroutines():
    document = {"functions": FUNCTIONS, "main": [CREATE, STEPS, NEXT]}
    assert write_twin(object_program(document).program) == (
        "@coroutine\ndef pause():\n    yield 1\nasync def wait():\n    await pause()\n"
        "def main():\n    c = wait()\n    w = c.__await__()\n    next(w)\n"
    )


@pytest.mark.parametrize("release", [(3, 12), (3, 13)])
def test_an_await_whose_place_is_not_known_is_refused_when_its_coroutine_is_closed(release):
    def program(statements):
        fill = [{"bind": {f"x{index}": 0}} for index in range(statements)]
        function = {"coroutine": True, "do": [*fill, {"await": {"call": "pause"}}]}
        return sizes(release, {"bind": {"c": {"call": "long"}}}, STEPS, NEXT, DROP, long=function)

    assert [program(count).count(32) for count in (116, 120)] == [0, 1]
    version = ".".join(map(str, release))
    with pytest.raises(
        WorkloadError, match=rf"^functions.long.do.118: in {version}, it is not known what is allocated"
    ):
        program(118)


# Real interpreters


@system
def test_coroutine_programs_request_the_memory_that_real_interpreters_request(version):
    for seed in range(8):
        for program in (random_coroutine_program(seed), random_delegation_program(seed)):
            assert verify_objects(program, INTERPRETERS[version]).difference == "", f"seed {seed}"


@system
def test_collections_see_what_they_see_in_real_interpreters(version):
    assert verify_objects(seen_coroutines(6), INTERPRETERS[version]).difference == ""


@system
def test_long_chains_of_coroutines_end_as_in_real_interpreters(version):
    again = {"repeat": 3, "as": "k", "do": chain(200)}
    document = {"functions": {**FUNCTIONS, "link": CHAIN}, "main": [again], "collector": {"thresholds": [7, 2, 1]}}
    assert verify_objects(object_program(document), INTERPRETERS[version]).difference == ""


def coroutine_programs(seeds: int):
    return [write(seed) for write in (random_coroutine_program, random_delegation_program) for seed in range(seeds)]


@system
def test_stack_sizes_are_those_of_the_compiler(version, tmp_path):
    release = version_of(INTERPRETERS[version])[:2]
    programs = [program.program for program in coroutine_programs(8)]
    sizes_of = asked(version, programs, "f.__code__.co_stacksize", tmp_path)
    for number, (program, found) in enumerate(zip(programs, sizes_of, strict=True)):
        functions = program.functions.values()
        are_generators = [*(each.coroutine or has_yield(each.do) for each in functions), False]
        bodies = zip(bodies_of(program), are_generators, strict=True)
        expected = [stack_size(body, release, is_generator) for body, is_generator in bodies]
        assert found == expected, f"program {number}"


@pytest.mark.system
@pytest.mark.parametrize("version", [version for version in INTERPRETERS if version.startswith(("3.12.", "3.13."))])
def test_places_that_exceptions_leave_are_those_of_the_compiler(version, tmp_path):
    places = "[i.offset // 2 for i in dis.get_instructions(f) if i.opname == 'CLEANUP_THROW']"
    programs = coroutine_programs(10)
    places_of = asked(version, [program.program for program in programs], places, tmp_path)
    for number, (program, found) in enumerate(zip(programs, places_of, strict=True)):
        bounds = send_places(program.code, version_of(INTERPRETERS[version]))
        for (first, end), in_function in zip(function_bounds(program.code), found, strict=True):
            expected = [bound for at, bound in bounds.items() if first <= at < end]
            for place, (least, largest) in zip(in_function, expected, strict=True):
                assert least <= place <= largest, f"program {number}"
