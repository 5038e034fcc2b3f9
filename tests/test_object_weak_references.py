"""Weak references and finalizers of object programs: their memory, and when their code runs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_programs import events, object_program, references
from weak_programs import random_weak_program

from replay.jit.arrays import DONE
from replay.objects.code import compile_program
from replay.objects.language import Program
from replay.objects.loop import run_machine
from replay.objects.rules import RELEASES
from replay.objects.running import new_machine, run_program
from replay.objects.twin import write_twin
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import verify_objects

INTERPRETERS = find_object_oracles()
MALLOC, FREE = Op.MALLOC, Op.FREE
OBJ = Domain.OBJ
SPOT = {"slots": ["p"], "weakref": True}
FINALIZED = {"slots": ["p", "kept"], "methods": {"__del__": {"do": [{"bind": {"text": {"letters": 10}}}]}}}
RESURRECTED = {"slots": ["p", "kept"], "methods": {"__del__": {"do": [{"append": "self", "to": "self.kept"}]}}}
CLASSES = {"Spot": SPOT, "Finalized": FINALIZED, "Resurrected": RESURRECTED, "Open": {}}
NOTE = {"parameters": ["r"], "do": [{"bind": {"text": {"letters": 10}}}]}
OPEN = {"bind": {"x": {"new": "Open"}}}
TEXT = 51
"""Size of that text from 3.12 on."""


def sizes(release, *main, functions=None):
    """The sizes of what a program allocates, those of what it frees as negative numbers. Collections are 0."""
    found = events(release, *main, functions={"note": NOTE, **(functions or {})}, classes=CLASSES)
    return [size if op != FREE else -size for op, domain, size, _ in found if domain in (OBJ, Domain.RAW)]


# Sequences computed by hand


@pytest.mark.parametrize(
    ("release", "instance", "arguments", "reference"),
    [((3, 11), 48, 48, 80), ((3, 12), 56, 48, 80), ((3, 13), 56, 48, 80)],
)
def test_a_weak_reference_does_not_keep_its_instance_alive(release, instance, arguments, reference):
    # the tuple of arguments goes to its free list
    start = [{"bind": {"x": {"new": "Spot"}}}, {"bind": {"r": {"weakref": "x"}}}, {"bind": {"x": 0}}]
    assert sizes(release, *start) == [instance, arguments, reference, -instance, -reference]


def test_two_weak_references_without_callbacks_are_one_object():
    found = sizes((3, 12), {"bind": {"x": {"new": "Spot"}}}, {"bind": {"r": {"weakref": "x"}, "s": {"weakref": "x"}}})
    assert found.count(80) == 1
    with_callbacks = {"r": {"weakref": "x", "callback": "note"}, "s": {"weakref": "x", "callback": "note"}}
    assert sizes((3, 12), {"bind": {"x": {"new": "Spot"}}}, {"bind": with_callbacks}).count(80) == 2


def test_a_weak_reference_leads_to_its_instance_until_that_ends():
    look = {"if_none": "y", "do": [{"bind": {"z": {"letters": 5}}}], "otherwise": [{"bind": {"z": {"letters": 6}}}]}
    follow = [{"bind": {"y": {"referent": "r"}}}, look]
    start = [{"bind": {"x": {"new": "Open"}}}, {"bind": {"r": {"weakref": "x"}}}]
    found = sizes((3, 12), *start, *follow, {"bind": {"x": 0, "y": 0}}, *follow)
    assert [size for size in found if size in (46, 47)] == [47, 46]


@pytest.mark.parametrize(("release", "pairs"), [((3, 12), []), ((3, 13), [56])])
def test_a_callback_runs_before_its_instance_is_freed_and_from_3_13_on_out_of_a_tuple(release, pairs):
    make = [{"bind": {"x": {"new": "Spot"}}}, {"bind": {"r": {"weakref": "x", "callback": "note"}}}]
    # the tuple of two arguments is in its free list when the callback needs one
    found = sizes(release, *make, {"bind": {"x": 0}})
    assert found == [56, 56, 80, TEXT, -TEXT, -56, -80]
    again = [{"bind": {"x": {"new": "Spot"}}}, {"bind": {"r": {"weakref": "x"}}}, {"bind": {"x": 0}}]
    alone = [{"bind": {"t": {"tuple": ["r", "r"]}}}]  # takes the tuple of the free list
    rest = sizes(release, *make, *alone, {"bind": {"x": 0}}, *again)[3:]
    assert rest[: len(pairs) + 3] == [*pairs, TEXT, -TEXT, -56]


def test_callbacks_run_from_the_newest_one_on():
    functions = {
        name: {"parameters": ["r"], "do": [{"bind": {"t": {"letters": n}}}]} for name, n in (("f", 20), ("g", 30))
    }
    made = {"r": {"weakref": "x", "callback": "f"}, "s": {"weakref": "x", "callback": "g"}}
    found = sizes((3, 12), {"bind": {"x": {"new": "Spot"}}}, {"bind": made}, {"bind": {"x": 0}}, functions=functions)
    assert [size for size in found if size in (61, 71)] == [71, 61]


def test_a_weak_reference_that_died_before_its_instance_calls_nothing():
    make = [{"bind": {"x": {"new": "Spot"}}}, {"bind": {"r": {"weakref": "x", "callback": "note"}}}]
    assert TEXT not in sizes((3, 12), *make, {"drop": ["r"]}, {"drop": ["x"]})


def test_a_finalizer_runs_before_its_instance_is_freed():
    assert sizes((3, 12), {"bind": {"x": {"new": "Finalized"}}}, {"bind": {"x": 0}}) == [48, TEXT, -TEXT, -48]


def test_a_finalizer_runs_once_and_can_keep_its_instance_alive():
    make = [{"bind": {"kept": {"list": []}, "x": {"new": "Resurrected"}}}, {"set": {"x.kept": "kept"}}]
    found = sizes((3, 12), *make, {"bind": {"x": 0}}, {"bind": {"y": {"letters": 10}}}, {"clear": "kept"})
    assert found == [56, 48, TEXT, -48, -TEXT]  # the list goes to its free list


CYCLE = {
    "do": [
        {"bind": {"x": {"new": "Spot"}, "y": {"new": "Finalized"}}},
        {"set": {"x.p": "y", "y.p": "x"}},
        {"return": {"weakref": "x", "callback": "note"}},
    ]
}


@pytest.mark.parametrize("release", RELEASES)
def test_a_collection_calls_callbacks_before_finalizers(release):
    functions = {"cycle": CYCLE, "note": {"parameters": ["r"], "do": [{"bind": {"text": {"letters": 30}}}]}}
    found = sizes(release, {"bind": {"r": {"call": "cycle"}}}, {"collect": 2}, functions=functions)
    header = 49 if release <= (3, 11) else 41
    assert [size for size in found if size in (header + 10, header + 30)] == [header + 30, header + 10]


@pytest.mark.parametrize(("release", "is_alive"), [((3, 14), False), ((3, 15), True)])
def test_finalizers_of_garbage_can_use_weak_references_to_it_from_3_15_on(release, is_alive):
    look = {"if_none": "o", "do": [{"bind": {"t": {"letters": 50}}}], "otherwise": [{"bind": {"t": {"letters": 60}}}]}
    watcher = {"methods": {"__del__": {"do": [{"bind": {"o": {"referent": "self.r"}}}, look]}}}
    main = [
        {"bind": {"x": {"new": "Watcher"}}},
        {"set": {"x.me": "x", "x.r": {"weakref": "x"}}},
        {"bind": {"x": 0}},
        {"collect": 2},
    ]
    found = [size for _, _, size, _ in events(release, *main, classes={"Watcher": watcher})]
    assert (101 in found, 91 in found) == (is_alive, not is_alive)


# Programs and their twins


def test_the_twin_has_weak_references_as_in_python():
    program = object_program(
        {
            "classes": {"Spot": SPOT},
            "main": [
                {"bind": {"x": {"new": "Spot"}, "r": {"weakref": "x"}, "s": {"weakref": "x", "callback": "r"}}},
                {"bind": {"y": {"referent": "r"}}},
                {"if_none": "y", "do": [{"drop": ["y"]}], "otherwise": [{"drop": ["x"]}]},
            ],
        }
    )
    assert write_twin(program.program).splitlines() == [
        "def main():", "    x = Spot()", "    r = ref(x)", "    s = ref(x, r)", "    y = r()",
        "    if y is None:", "        del y", "    else:", "        del x",
        "class Spot:", "    __slots__ = ('p', '__weakref__')",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"main": [{"bind": {"x": {"list": []}}}, {"bind": {"r": {"weakref": "x"}}}]},
         "main.1: expected an instance of a class without slots, or with `weakref: true`"),
        ({"classes": {"Open": {"slots": ["p"]}}, "main": [OPEN, {"bind": {"r": {"weakref": "x"}}}]},
         "main.1: expected an instance of a class without slots, or with `weakref: true`"),
        ({"classes": CLASSES, "main": [OPEN, {"bind": {"r": {"weakref": "x", "callback": "x"}}}]},
         "main.1: expected a function or bound method"),
        ({"main": [{"bind": {"x": 5}}, {"bind": {"r": {"referent": "x"}}}]}, "main.1: expected a weak reference"),
        ({"classes": CLASSES, "functions": {"f": {"do": [{"return": 0}]}},
          "main": [OPEN, {"bind": {"r": {"weakref": "x", "callback": "f"}}}, {"bind": {"x": 0}}]},
         "main.2: the function has 0 parameters, and is called with 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_its_place(document, message):
    with pytest.raises(WorkloadError) as caught:
        list(run_program(object_program(document), (3, 12)))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (10_000_000, "main.2: calls are nested more than 1000 deep"),
        (
            500,
            "main.2: the program takes more than 500 steps; if it ends, allow more with `limits: {steps: …}`",
        ),
    ],
)
def test_callbacks_without_an_end_are_stopped(steps, message):
    again = [{"bind": {"x": {"new": "Open"}}}, {"bind": {"s": {"weakref": "x", "callback": "f"}}}]  # x dies first
    main = [OPEN, {"bind": {"y": {"weakref": "x", "callback": "f"}}}, {"bind": {"x": 0}}, {"bind": {"z": 0}}]
    functions = {"f": {"parameters": ["r"], "do": again}}
    document = {"classes": CLASSES, "functions": functions, "main": main, "limits": {"steps": steps}}
    with pytest.raises(WorkloadError) as caught:
        list(run_program(object_program(document), (3, 13)))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        ({"K": {"weakref": True}}, (("classes", "K", "weakref"), "is for classes with `slots`; others always can")),
        ({"K": {"methods": {"__del__": {"parameters": ["a"], "do": [{"return": 0}]}}}},
         (("classes", "K", "methods", "__del__", "parameters"), "__del__ has no parameters")),
    ],
)  # fmt: skip
def test_a_class_that_cannot_be_is_refused(classes, problem):
    document = {"kind": "objects", "classes": classes, "main": [{"bind": {"x": 1}}]}
    code, problems = compile_program(Program.model_validate(document))
    assert (code, [tuple(each) for each in problems]) == (None, [problem])


@given(st.integers(0, 10_000), st.sampled_from(RELEASES))
def test_weak_references_are_counted_as_no_references(seed, release):
    program = random_weak_program(seed)
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:
        counts, found = references(machine)
        assert counts == found
        assert machine.heap.collector[0].floor == machine.heap.collector[0].waiting == machine.state[0].interrupted == 0


@pytest.mark.system
@pytest.mark.parametrize("version", INTERPRETERS)
def test_weak_references_and_finalizers_are_those_of_real_interpreters(version):
    for seed in range(12):
        agreement = verify_objects(random_weak_program(seed), INTERPRETERS[version])
        assert agreement.difference == "", f"seed {seed}"
