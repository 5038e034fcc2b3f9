"""Exceptions in generators and coroutines of object programs, and in what weak references and finalizers call."""

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from object_programs import events, object_program, references
from raising_generator_programs import (
    random_calling_coroutine_program,
    random_raising_coroutine_program,
    random_raising_generator_program,
    random_raising_pipeline_program,
)
from weak_programs import random_weak_generator_program

from replay.jit.arrays import DONE
from replay.objects.loop import run_machine
from replay.objects.rules import RELEASES
from replay.objects.running import new_machine
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import verify_objects

INTERPRETERS = find_object_oracles()
CREATE, NEXT, DROP = {"bind": {"g": {"call": "f"}}}, {"next": "g", "default": 0}, {"drop": ["g"]}
NOTHING = {"bind": {"z": 0}}


def sizes(release, *main, **functions):
    """The sizes of what a program allocates, those of what it frees as negative numbers."""
    found = events(release, *main, functions=functions)
    return [size if op != Op.FREE else -size for op, domain, size, _ in found if domain == Domain.OBJ]


def attempt(*body, handle=(NOTHING,), to="Exception"):
    return {"try": [*body], "except": to, "handle": [*handle]}


# Sequences computed by hand


@pytest.mark.parametrize(
    ("release", "found"),
    [
        # main's frame, the generator's, and the generator; the traceback before the exception, which `finally` needs
        ((3, 10), [408, 448, 104, 56, 80, 89, -80, -89, -56, -104]),
        ((3, 11), [208, 176, 56, 88, 89, -88, -89, -176, -56, -208]),
        # the exception first; the frame object of main remains until its end
        ((3, 12), [200, 88, 176, 56, 81, 176, -81, -176, -56, -88, -200, -176]),
        ((3, 13), [200, 88, 192, 56, 81, -81, -192, -56, -88, -200]),
        ((3, 15), [208, 88, 208, 56, 81, -81, -208, -56, -88, -208]),
    ],
)
def test_a_generator_that_dies_in_try_runs_its_finally(release, found):
    function = {"do": [{"try": [{"yield": 1}], "finally": [{"bind": {"u": {"letters": 40}}}]}]}
    assert sizes(release, CREATE, NEXT, DROP, f=function) == found
    closed = sizes(release, CREATE, NEXT, {"close": "g"}, f=function)  # the generator lives until the end of main
    assert closed[:-2] == found[:-2]


@pytest.mark.parametrize(
    ("release", "found"),
    [
        # in the handler, the generator dies; after it the exception: its argument, the frame, and two tracebacks
        ((3, 9), [456, 69, 408, 112, 48, 80, 56, 56, 148, -112, -80, -69, -56, -56, -148]),
        ((3, 12), [61, 192, 48, 88, 168, 56, 176, 56, 140, -192, -61, -168, -56, -56, -88, -176, -140]),
        ((3, 15), [61, 200, 88, 56, 200, 56, 208, 56, 140, -200, -61, -200, -56, -56, -88, -208, -140]),
    ],
)
def test_a_generator_that_an_exception_left_keeps_its_variables_as_long_as_the_exception_lives(release, found):
    function = {"parameters": ["n"], "do": [{"yield": 1}, {"raise": "ValueError", "with": ["n"]}]}
    create = {"bind": {"g": {"call": "f", "with": [{"letters": 20}]}}}
    handle = attempt(NEXT, to="ValueError", handle=[{"bind": {"g": {"letters": 99}}}])
    assert sizes(release, create, NEXT, handle, f=function) == found


@pytest.mark.parametrize(
    ("release", "found"),
    [
        ((3, 10), [456, 384, 104, 56, 88, -88, -56, -104]),
        ((3, 11), [176, 184, 56, 96, -56, -96, -184, -176]),  # the frame object of main before the exception
        ((3, 12), [176, 96, 184, 56, -56, -96, -184, -176]),
        ((3, 15), [184, 96, 216, 56, -56, -96, -216, -184]),
    ],
)
def test_next_raises_stop_iteration_after_the_end(release, found):
    body = CREATE, NEXT, attempt({"next": "g"}, to="StopIteration")
    assert sizes(release, *body, f={"do": [{"yield": 1}]}) == found


@pytest.mark.parametrize(("release", "is_created"), [((3, 8), False), ((3, 9), True), ((3, 11), True)])
def test_from_3_9_on_what_a_generator_handles_is_the_context_of_what_closes_it(release, is_created):
    """So the exception exists before the traceback."""
    function = {"do": [attempt({"raise": "ValueError"}, handle=[{"yield": 1}])]}
    found = sizes(release, CREATE, NEXT, {"close": "g"}, f=function)
    exceptions = [size for size in found if size == (88 if release == (3, 11) else 80)]
    assert len(exceptions) == 1 + is_created


@pytest.mark.parametrize(("release", "is_created"), [((3, 9), True), ((3, 10), False)])
def test_up_to_3_9_the_end_of_what_a_handler_delegates_to_is_an_exception(release, is_created):
    function = {"parameters": ["x"], "do": [attempt({"raise": "KeyError"}, handle=[{"yield_from": "x"}])]}
    create = {"bind": {"g": {"call": "f", "with": [{"call": "inner"}]}}}
    found = sizes(release, create, NEXT, NEXT, f=function, inner={"do": [{"yield": 1}]})
    assert (88 in found) is is_created


# Mistakes


@pytest.mark.parametrize(
    ("body", "main", "message"),
    [
        ([{"try": [{"yield": 1}], "finally": [{"yield": 2}]}], [CREATE, NEXT, {"close": "g"}],
         "functions.f.do.0.finally.0: a generator yields here while it is being closed, which CPython does not allow"),
        ([{"try": [{"yield": 1}], "finally": [{"raise": "KeyError"}]}], [CREATE, NEXT, attempt(DROP)],
         "functions.f.do.0.finally.0: an exception leaves a finalizer, a callback or a dying generator here, .*"),
        ([{"bind": {"x": {"call": "one"}}}, {"next": "x"}, {"next": "x"}, {"yield": 1}], [attempt(CREATE, NEXT)],
         "functions.f.do.2: StopIteration leaves a generator here, for which CPython raises a RuntimeError; .*"),
        ([{"yield": 1}], [CREATE, {"next": "g"}, {"try": [{"next": "g"}], "finally": [NOTHING]}],
         "main.2.try.0: StopIteration is raised here, and has no handler"),
        ([{"yield": 1}, {"raise": "KeyError"}], [CREATE, {"next": "g"}, {"next": "g"}],
         "functions.f.do.1: KeyError is raised here, and has no handler"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("release", [(3, 10), (3, 12), (3, 15)])
def test_a_mistake_of_a_running_program_is_reported_with_its_place(body, main, message, release):
    with pytest.raises(WorkloadError, match=f"^{message}$"):
        sizes(release, *main, f={"do": body}, one={"do": [{"yield": 1}]})


def test_an_exception_that_leaves_a_finalizer_is_refused():
    classes = {"K": {"methods": {"__del__": {"do": [{"raise": "KeyError"}]}}}}
    document = {"classes": classes, "main": [attempt({"bind": {"x": {"new": "K"}}}, {"drop": ["x"]})]}
    program = object_program(document)
    machine = new_machine(program.code, (3, 12), program.program)
    run_machine(machine)
    assert machine.state[0].mistake > 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"main": [attempt({"raise": "StopIteration"})]}, "only `next` raises StopIteration"),
        (
            {"classes": {"E": {"base": "StopIteration"}}, "main": [NOTHING]},
            "no class can derive from StopIteration here",
        ),
    ],
)
def test_stop_iteration_comes_from_next_only(document, message):
    with pytest.raises(AssertionError, match=message):
        object_program(document)


# Random programs


WRITERS = (
    random_raising_generator_program,
    random_raising_pipeline_program,
    random_raising_coroutine_program,
    random_weak_generator_program,
)
REFUSED = (
    "exact length",
    "not known",
    "not supported",
    "does not allow",
    "awaited by another",
    "has ended",
    "never ran",
    "not below",
    "expected an instance of a class",
)
"""Parts of the messages with which random programs may be refused."""


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(RELEASES), st.sampled_from([*WRITERS, random_calling_coroutine_program]))
def test_reference_counts_are_the_number_of_references_at_the_end(seed, release, write):
    try:
        program = write(seed)
    except AssertionError as error:  # the writer does not see that a `try` always raises
        if "is never reached" not in str(error):
            raise
        reject()
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:
        counted, found = references(machine)
        assert counted == found
        assert machine.state[0].handled == machine.state[0].generators == machine.state[0].interrupted == 0


@pytest.mark.system
@pytest.mark.parametrize("version", INTERPRETERS)
@pytest.mark.parametrize("write", WRITERS)
def test_random_programs_request_the_memory_that_real_interpreters_request(version, write):
    compared = 0
    for seed in range(12):
        try:
            agreement = verify_objects(write(seed), INTERPRETERS[version])
        except WorkloadError as error:
            if not any(part in str(error) for part in REFUSED):
                raise
            continue
        assert agreement.difference == "", f"seed {seed}"
        compared += 1
    assert compared >= 3
