"""Exceptions in object programs: what they allocate, what they keep alive, and where they are handled."""

import json
import textwrap

import pytest
from exception_programs import calling_document, calling_program, raising_document, raising_program
from hypothesis import given
from hypothesis import strategies as st
from object_programs import events, object_program, references

from replay.jit.arrays import DONE
from replay.objects import load_objects
from replay.objects.loop import run_machine
from replay.objects.rules import RELEASES
from replay.objects.running import new_machine, run_program
from replay.objects.twin import write_twin
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import simulate, verify_objects

INTERPRETERS = find_object_oracles()
MALLOC, FREE = Op.MALLOC, Op.FREE
OBJ = Domain.OBJ
TEXT = {"letters": 60}
NOTHING = {"bind": {"z": 0}}


def sizes(found):
    """The sizes of requests of objects, those of frees negative."""
    return [-size if op == FREE else size for op, domain, size, _ in found if domain == OBJ]


def attempt(*body, handle=(NOTHING,), **more):
    """A `try` with these statements, whose handler is for all exceptions."""
    return {"try": [*body], "except": "Exception", "handle": [*handle], **more}


# Sequences computed by hand


def test_a_handled_exception_has_a_frame_object_and_a_traceback():
    assert events((3, 12), attempt({"raise": "ValueError"})) == [
        (MALLOC, OBJ, 88, 1),
        (MALLOC, OBJ, 136 + 8 * (1 + 4), 2),  # one variable, and a stack of four values
        (MALLOC, OBJ, 56, 3),
        (FREE, OBJ, 56, 3),
        (FREE, OBJ, 88, 1),
        (FREE, OBJ, 176, 2),  # at the end of the function
    ]


def test_up_to_3_10_the_frame_is_the_one_of_the_call():
    assert events((3, 10), attempt({"raise": "ValueError"})) == [
        (MALLOC, OBJ, 376 + 8 * (1 + 8), 1),
        (MALLOC, OBJ, 80, 2),
        (MALLOC, OBJ, 56, 3),
        (FREE, OBJ, 80, 2),
        (FREE, OBJ, 56, 3),
    ]


@pytest.mark.parametrize(("release", "first"), [((3, 8), 80), ((3, 9), 56), ((3, 15), 56)])
def test_from_3_9_on_the_traceback_of_a_named_exception_is_freed_first(release, first):
    found = events(release, attempt({"raise": "ValueError"}, **{"as": "e"}))
    assert next(size for op, _, size, _ in found if op == FREE) == first


@pytest.mark.parametrize(("release", "order"), [((3, 13), [48, 88]), ((3, 14), [88, 56])])
def test_from_3_14_on_an_exception_is_allocated_before_its_arguments(release, order):
    found = events(release, attempt({"raise": "ValueError", "with": [1]}))
    assert sizes(found)[:2] == order


def test_a_call_that_an_exception_left_keeps_its_variables_as_long_as_the_exception_lives():
    fail = {"fail": {"do": [{"bind": {"x": TEXT}}, {"raise": "KeyError"}]}}
    keep = attempt({"call": "fail"}, handle=({"bind": {"kept": "e"}},), **{"as": "e"})
    found = sizes(events((3, 12), keep, {"bind": {"y": {"letters": 70}}}, {"drop": ["kept"]}, functions=fail))
    frame, caller = 136 + 8 * (1 + 2), 136 + 8 * (3 + 4)
    assert found[:7] == [101, 88, frame, 56, caller, 56, 111]
    assert found[7:11] == [-101, -frame, -56, -56]


def test_an_exception_in_a_variable_of_its_frame_is_freed_by_the_collector_only():
    fail = {"fail": {"do": [attempt({"raise": "KeyError"}, handle=({"bind": {"kept": "e"}},), **{"as": "e"})]}}
    found = sizes(events((3, 10), {"call": "fail"}, functions=fail))
    assert [size for size in found if size < 0] == []
    found = sizes(events((3, 10), {"call": "fail"}, {"collect": 0}, functions=fail))
    assert [size for size in found if size < 0] == [-56, -80]  # the function keeps the memory of its frame


def test_an_exception_raised_in_a_handler_keeps_the_handled_one_as_its_context():
    change = attempt({"raise": "KeyError", "with": [TEXT]}, handle=({"raise": "ValueError"},))
    found = sizes(events((3, 12), attempt(change, handle=({"bind": {"x": {"letters": 70}}},))))
    assert found.index(111) < found.index(-101)


def test_values_on_the_stack_die_from_the_last_one_on_before_the_handler_starts():
    fail = {"fail": {"do": [{"raise": "KeyError"}]}}
    use = {"bind": {"x": {"list": [TEXT, {"letters": 70}, {"call": "fail"}]}}}
    found = sizes(events((3, 12), attempt(use, handle=({"bind": {"y": {"letters": 80}}},)), functions=fail))
    assert [size for size in found if abs(size) in (101, 111, 121)][:5] == [101, 111, -111, -101, 121]


@pytest.mark.parametrize(("wanted", "is_handled"), [("LookupError", True), ("ValueError", False), (["KeyError"], True)])
def test_a_handler_is_for_its_classes_and_those_derived_from_them(wanted, is_handled):
    choice = {"try": [{"raise": "KeyError"}], "except": wanted, "handle": [{"bind": {"x": TEXT}}]}
    found = sizes(events((3, 12), attempt(choice)))
    assert (101 in found) == is_handled


@pytest.mark.parametrize(
    ("body", "created"),
    [
        ([NOTHING], [101]),
        ([{"raise": "KeyError"}], [101]),
        ([{"return": {"letters": 70}}], [111, 101]),
    ],
)
def test_finally_runs_after_the_statements_after_an_exception_and_before_a_return(body, created):
    run = {"run": {"do": [{"try": body, "finally": [{"bind": {"x": TEXT}}]}]}}
    found = sizes(events((3, 12), attempt({"call": "run"}), functions=run))
    assert [size for size in found if size in (101, 111)] == created


def test_3_8_numbers_the_variables_of_finally_before_those_of_try():
    body = {"try": [{"bind": {"a": TEXT}}], "finally": [{"bind": {"b": {"letters": 70}}}]}
    for release, order in (((3, 8), [-119, -109]), ((3, 9), [-109, -119])):
        assert [size for size in sizes(events(release, body)) if size < -100 and size > -200] == order


def test_a_place_beyond_the_small_integers_is_allocated_when_an_exception_leaves_a_handler():
    fill = {"bind": {f"x{index}": {"sum": ["n", index]} for index in range(120)}}
    again = attempt({"raise": "KeyError"}, handle=({"raise": "ValueError"},))
    statements = {"bind": {"n": 0}}, fill, attempt(again)
    assert sizes(events((3, 12), *statements)).count(32) == 1
    assert sizes(events((3, 14), *statements)).count(32) == 0


def test_the_first_except_for_the_class_of_an_exception_handles_it():
    handlers = [
        {"except": "KeyError", "handle": [{"bind": {"x": {"letters": 60}}}]},
        {"except": ["ValueError", "LookupError"], "as": "e", "handle": [{"bind": {"x": {"letters": 70}}}]},
        {"except": "Exception", "handle": [{"bind": {"x": {"letters": 80}}}]},
    ]
    for raised, created in (("KeyError", 101), ("IndexError", 111), ("ValueError", 111), ("TypeError", 121)):
        found = sizes(events((3, 12), {"try": [{"raise": raised}], "handlers": handlers}))
        assert [size for size in found if size in (101, 111, 121)] == [created]


@pytest.mark.parametrize(
    ("release", "created"),
    [((3, 10), [88, 64]), ((3, 11), [96, 64, 120]), ((3, 12), [104, 64, 120]), ((3, 15), [104, 64])],
)  # in 3.10 and from 3.13 on, the values or keys of the attributes are no objects
def test_an_exception_of_an_own_class_has_its_attributes_in_a_dict(release, created):
    main = {"bind": {"e": {"new": "E"}}}, {"set": {"e.code": 5}}
    found = sizes(events(release, *main, classes={"E": {"base": "KeyError"}}))
    assert [size for size in found if 0 < size < 200] == created


@pytest.mark.parametrize(("wanted", "created"), [("E", 101), ("F", 111), ("LookupError", 101), ("KeyError", 101)])
def test_a_handler_for_a_base_is_for_own_classes_too(wanted, created):
    choice = {"except": wanted, "handle": [{"bind": {"x": TEXT}}]}
    other = {"except": "Exception", "handle": [{"bind": {"x": {"letters": 70}}}]}
    raised = {"raise": "D", "with": [1]}
    classes = {"E": {"base": "KeyError"}, "D": {"base": "E"}, "F": {"base": "KeyError"}}
    found = sizes(events((3, 12), {"try": [raised], "handlers": [choice, other]}, classes=classes))
    assert created in found


@pytest.mark.parametrize(("cause", "is_kept"), [({}, False), ({"from": "first"}, True), ({"from": None}, False)])
def test_an_exception_keeps_its_cause(cause, is_kept):
    classes = {"E": {"base": "ValueError"}}
    raised = {"try": [{"raise": "E", **cause}], "except": "E", "as": "e", "handle": [{"bind": {"kept": "e"}}]}
    main = {"bind": {"first": {"new": "E", "with": [TEXT]}}}, raised, {"drop": ["first"]}
    found = sizes(events((3, 12), *main, classes=classes))
    assert (-101 not in found) == is_kept  # `kept` and the frame of `main` are a cycle


@pytest.mark.parametrize(("release", "function", "text"), [((3, 10), 144, 119), ((3, 11), 152, 119)])
def test_from_3_11_on_a_frame_object_keeps_the_function_of_its_call(release, function, text):
    inner = {"drop": ["f"]}, {"bind": {"y": {"letters": 70}}}, {"raise": "KeyError"}
    fail = {"fail": {"do": [{"define": "f", "nonlocal": ["f"], "do": [*inner]}, {"call": "f"}]}}
    found = sizes(events(release, attempt({"call": "fail"}), functions=fail))
    assert [size for size in found if size in (-function, -text)] == [-function, -text]
    assert (found.index(-function) < len(found) - found[::-1].index(56)) == (release == (3, 10))  # the last traceback


def test_an_exception_that_leaves_init_releases_the_arguments_before_the_traceback_of_the_caller():
    init = {"__init__": {"parameters": ["a"], "do": [{"bind": {"a": 0}}, {"raise": "KeyError"}]}}
    made = attempt({"bind": {"x": {"new": "K", "with": [TEXT]}}})
    found = sizes(events((3, 12), made, classes={"K": {"slots": ["p"], "methods": init}}))
    frame, caller = 136 + 8 * (2 + 1), 136 + 8 * (2 + 4)
    assert found[:9] == [101, 48, 40, 88, frame, 56, caller, -101, 56]  # the tuple goes to its free list


def test_init_of_an_exception_is_inherited_and_sets_its_attributes():
    init = {"__init__": {"parameters": ["n"], "do": [{"set": {"self.text": {"letters": "n"}}}]}}
    classes = {"B": {"base": "KeyError", "methods": init}, "E": {"base": "B"}}
    handle = {"bind": {"kept": "e.text"}}
    raised = {"raise": "E", "with": [60]}
    found = sizes(events((3, 12), attempt(raised, handle=(handle,), **{"as": "e"}), classes=classes))
    assert found[:5] == [48, 104, 101, 64, 120]  # arguments, exception, text, its dict, keys
    assert found.index(-104) < found.index(-101)


# The language


def test_a_twin_raises_and_handles_the_same_exceptions():
    body = {"try": [{"raise": "KeyError", "with": [1, "x"]}], "except": ["KeyError", "ValueError"], "as": "e"}
    handle = {"handle": [{"raise": "e"}], "finally": [{"raise": "TypeError"}]}
    program = object_program({"main": [{"bind": {"x": 0}}, {**body, **handle}]})
    assert write_twin(program.program) == textwrap.dedent(
        """\
        def main():
            x = 0
            try:
                raise KeyError(1, x)
            except (KeyError, ValueError, ) as e:
                raise e
            finally:
                raise TypeError
        """
    )


WRONG = """\
kind: objects
main:
  - try:
      - raise: KeyError
        with: [1]
    except: KeyError
    as: e
    handle:
      - drop: [e]
    finally:
      - bind: {x: 0}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("raise: KeyError", "raise: KeyEror", "4: main.0.try.0: unknown exception 'KeyEror'; did you mean 'KeyError'"),
        ("except: KeyError", "except: KeyEror", "6: main.0.except: unknown exception 'KeyEror'; did you mean"),
        ("except: KeyError", "except: []", "6: main.0.except: expected an exception such as `KeyError`, or a list of"),
        ("    except: KeyError\n", "", "main.0.handle: `handle` needs `except`"),
        ("    handle:\n      - drop: [e]\n", "", "6: main.0.except: `except` needs `handle`"),
        ("with: [1]", "with: [e]", "4: main.0.try.0: 'e' is not bound here"),
        ("bind: {x: 0}", "return: 0", "main.0.finally: `return` is not supported in `finally`"),
        ("raise: KeyError\n        with: [1]", "raise:", "`raise` without an exception is for handlers"),
        ("    as: e", "    as: KeyError", "7: main.0.as: 'KeyError' has a meaning in Python; choose another name"),
        ("        with: [1]\n", "      - bind: {x: 0}\n", "main.0.try.1: is never reached, because it is after"),
        ("except: KeyError", "except: ValueError", "4: main.0.try.0: KeyError is raised here, and has no handler"),
        ("raise: KeyError\n        with: [1]", "raise: {letters: 5}", "4: main.0.try.0: expected an exception"),
        ("with: [1]", "from: [e]", "5: main.0.try.0.from: ['e'] is not an expression"),
        ("with: [1]", "from: x", "4: main.0.try.0: 'x' is not bound here"),
        ("with: [1]", "from: 5", "4: main.0.try.0: expected an exception"),
        ("    as: e", "    handlers: [{except: KeyError, handle: [pop: x]}]", "is one of `handlers`, or there are"),
        ("raise: KeyError", "raise: {tuple: []}", "`with` is for new exceptions, such as `raise: ValueError`"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_file_line_and_key(tmp_path, old, new, message):
    path = tmp_path / "program.yaml"
    assert old in WRONG
    path.write_text(WRONG.replace(old, new, 1))
    with pytest.raises(WorkloadError) as caught:
        list(run_program(load_objects(path), (3, 12)))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"E": {"base": "KeyEror"}}, "classes.E.base: 'KeyEror' is no class of exceptions; did you mean 'KeyError'"),
        ({"E": {"base": "F"}, "F": {"base": "KeyError"}}, "classes.E.base: 'F' is not before this class"),
        ({"E": {"base": "KeyError", "slots": ["x"]}}, "classes.E.slots: is not supported in a class with `base`"),
    ],
)
def test_a_class_that_cannot_derive_from_its_base_is_refused(tmp_path, classes, message):
    path = tmp_path / "program.yaml"
    path.write_text(json.dumps({"kind": "objects", "classes": classes, "main": [NOTHING]}))
    with pytest.raises(WorkloadError) as caught:
        load_objects(path)
    assert message in str(caught.value)


def test_a_try_needs_a_handler_or_finally(tmp_path):
    path = tmp_path / "program.yaml"
    path.write_text("kind: objects\nmain:\n  - try:\n      - bind: {x: 0}\n")
    with pytest.raises(WorkloadError, match="needs `except` and `handle`, or `finally`"):
        load_objects(path)


def test_statements_after_one_that_always_raises_are_refused():
    choice = {"choose": 0.5, "do": [{"raise": "KeyError"}], "otherwise": [{"return": 0}]}
    with pytest.raises(AssertionError, match="is never reached, because it is after a statement that always returns"):
        object_program({"main": [choice, NOTHING]})


def test_a_function_of_critical_length_is_refused_where_its_length_matters():
    refused = []
    for count in range(36, 60):
        fill = {"bind": {f"x{index}": {"sum": ["n", index]} for index in range(count)}}
        again = attempt({"raise": "KeyError"}, handle=({"raise": "ValueError"},))
        program = object_program({"main": [{"bind": {"n": 0}}, fill, attempt(again)]})
        simulate(program, (3, 14))
        try:
            simulate(program, (3, 12))
        except WorkloadError as error:
            refused.append((count, str(error)))
    assert 0 < len(refused) < 6
    assert all("depends on the exact length of the function's code" in message for _, message in refused)


# Random programs


@given(st.integers(0, 10_000), st.sampled_from(RELEASES), st.sampled_from([raising_document, calling_document]))
def test_everything_that_exceptions_kept_is_gone_after_a_full_collection(seed, release, write):
    document = write(seed)
    document["functions"]["body"] = {"do": document["main"]}
    document["main"] = [{"call": "body"}, {"collector": "unfreeze"}, {"collect": 2}]
    program = object_program(document)
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:
        assert references(machine) == ([], [])
        assert machine.state[0].handled == 0


@pytest.mark.parametrize("seed", range(6))
def test_compiled_and_plain_code_handle_exceptions_alike(seed):
    program = raising_program(seed)
    compiled, plain = (new_machine(program.code, (3, 10), program.program) for _ in range(2))
    assert run_machine(compiled) == run_machine.py_func(plain) == DONE
    count = compiled.heap.counts[0].events
    assert (compiled.heap.events[:count] == plain.heap.events[:count]).all()


system = pytest.mark.system
with_interpreters = pytest.mark.skipif(
    not INTERPRETERS, reason="no libpython from 3.8 on on this machine: see `replay verify --list`"
)


@system
@with_interpreters
@pytest.mark.parametrize("version", INTERPRETERS)
@pytest.mark.parametrize("write", [raising_program, calling_program])
def test_random_programs_with_exceptions_request_the_memory_that_real_interpreters_request(version, write):
    compared = 0
    for seed in range(20):
        try:
            agreement = verify_objects(write(seed), INTERPRETERS[version])
        except WorkloadError as error:  # a function of critical length
            if "exact length" not in str(error):
                raise
            continue
        assert agreement.difference == "", f"seed {seed}"
        compared += 1
    assert compared >= 15


@system
@with_interpreters
@pytest.mark.parametrize("version", INTERPRETERS)
def test_long_tracebacks_and_contexts_are_freed_as_in_real_interpreters(version):
    last = {"if_key": "n", "in": "ends", "do": [{"raise": "ValueError", "with": [{"list": ["n"]}]}]}
    further = {"with": ["ends", {"sum": ["n", 1]}]}
    chain = {
        "try": [{"raise": "KeyError"}],
        "except": "LookupError",
        "as": "e",
        "handle": [last, {"call": "chain", **further}],
    }
    names = ["ends", "n"]
    functions = {
        "down": {"parameters": names, "do": [{"bind": {"x": {"list": ["n"]}}}, last, {"call": "down", **further}]},
        "chain": {"parameters": names, "do": [chain]},
    }
    keep = {"except": "ValueError", "as": "e", "handle": [{"bind": {"kept": "e"}}]}
    main = [{"try": [{"call": name, "with": [{"set": [130]}, 1]}], **keep} for name in functions]
    program = object_program({"functions": functions, "main": [*main, {"drop": ["kept"]}, {"collect": 2}]})
    assert verify_objects(program, INTERPRETERS[version]).difference == ""


@system
@with_interpreters
@pytest.mark.parametrize("version", INTERPRETERS)
def test_collections_that_start_while_an_exception_is_raised_find_what_they_find_in_real_interpreters(version):
    raised = {"raise": "KeyError", "with": [{"list": [{"list": ["n"]}, {"new": "K"}, {"list": []}]}]}
    keep = {"except": "Exception", "as": "e", "handle": [{"bind": {"kept": {"tuple": [{"tuple": ["e"]}]}}}]}
    body = [{"bind": {"xs": {"tuple": [{"list": ["n"]}]}}}, {"try": [{"bind": {"d": {"dict": []}}}, raised], **keep}]
    functions = {"f": {"parameters": ["n"], "do": body}, "g": {"parameters": ["n"]}}
    functions["g"]["do"] = [{"bind": {"x": {"call": "f", "with": ["n"]}}}]
    main = [{"repeat": 12, "as": "i", "do": [{"call": "g", "with": [{"list": ["i"]}]}]}]
    for threshold in range(3, 25):
        collector = {"thresholds": [threshold, 0, 0]}
        document = {"classes": {"K": {}}, "functions": functions, "main": main, "collector": collector}
        assert verify_objects(object_program(document), INTERPRETERS[version]).difference == "", threshold
