"""The cyclic collector of object programs: when it runs, what it finds, and its settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_programs import NODE, events, object_program, random_document, references

from replay.jit.arrays import DONE
from replay.objects.loop import run_machine
from replay.objects.rules import RELEASES
from replay.objects.running import new_machine
from replay.trace import Domain, Op
from replay.verification.objects import simulate
from replay.verification.visits import model_visits

MALLOC, CALLOC, FREE = Op.MALLOC, Op.CALLOC, Op.FREE
MEM, OBJ = Domain.MEM, Domain.OBJ
PAIR = {"do": [{"bind": {"a": {"new": "Node"}, "b": {"new": "Node"}}}, {"set": {"a.next": "b", "b.next": "a"}}]}
"""A function that leaves two instances behind that refer to each other."""


def collections(release, *main, **settings):
    """The generations of a program's collections, and how many objects they found."""
    program = object_program({"classes": NODE, "functions": {"pair": PAIR}, "main": list(main), **settings})
    found, end = simulate(program, release)
    return found["size"][found["op"] == Op.GC_START].tolist(), int(end.generations["collected"].sum())


def test_only_the_collector_frees_objects_that_refer_to_each_other():
    assert events((3, 11), {"call": "pair"}, functions={"pair": PAIR}) == [(MALLOC, OBJ, 48, 1), (MALLOC, OBJ, 48, 2)]
    assert events((3, 11), {"call": "pair"}, {"collect": 0}, functions={"pair": PAIR})[2:] == [
        (Op.GC_START, Domain.RAW, 0, 0),
        (FREE, OBJ, 48, 2),  # clearing the first one frees the second one
        (FREE, OBJ, 48, 1),
        (Op.GC_END, Domain.RAW, 0, 0),
    ]


@pytest.mark.parametrize(("release", "first"), [((3, 11), 701), ((3, 12), 701), ((3, 13), 2001)])
def test_a_collection_starts_when_more_objects_were_allocated_than_its_threshold(release, first):
    def grow(objects):
        return {"repeat": objects, "as": "i", "do": [{"append": {"new": "Node"}, "to": "xs"}]}

    xs = {"bind": {"xs": {"list": []}}}
    assert collections(release, xs, grow(first - 2)) == ([], 0)  # the list is an object too
    assert collections(release, xs, grow(first - 1)) == ([0], 0)


def test_older_generations_are_collected_after_a_number_of_younger_ones():
    grow = {"repeat": 30, "as": "i", "do": [{"append": {"new": "Node"}, "to": "xs"}]}
    statements = {"bind": {"xs": {"list": []}}}, grow
    generations, _ = collections((3, 11), *statements, collector={"thresholds": [1, 2, 1]})
    # one for each pair of objects; the oldest generation that is due
    assert generations == [0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0, 0, 1, 0, 0]


def test_a_full_collection_waits_until_a_quarter_of_the_survivors_is_new():
    grow = {"repeat": 150, "as": "i", "do": [{"append": {"new": "Node"}, "to": "xs"}]}
    more = {"repeat": 60, "as": "j", "do": [{"append": {"new": "Node"}, "to": "xs"}]}
    statements = [
        {"bind": {"xs": {"list": []}}},
        {"collector": "disable"},
        grow,
        {"collect": 2},
        {"collector": "enable"},
    ]
    generations, _ = collections((3, 11), *statements, more, collector={"thresholds": [5, 0, 0]})
    # 151 objects survived the first one, so 37 are needed; those of generation 1 have 11, 23, 35 and 47
    assert generations == [2, 0, 1, 0, 1, 0, 1, 0, 1, 2, 0]


@pytest.mark.parametrize("switch", ["disable", "freeze"])
def test_a_collector_that_is_off_and_frozen_objects_find_nothing(switch):
    calls = {"repeat": 500, "as": "i", "do": [{"call": "pair"}]}
    statements = (
        [{"collector": switch}, calls] if switch == "disable" else [calls, {"collector": switch}, {"collect": 2}]
    )
    _, found = collections((3, 12), *statements, collector={"enabled": switch == "disable"})
    assert found == 0


def test_a_disabled_collector_still_collects_on_demand():
    generations, found = collections((3, 12), {"call": "pair"}, {"collect": 1}, collector={"enabled": False})
    assert (generations, found) == ([1], 2)


@pytest.mark.parametrize(("release", "level"), [((3, 12), 50), ((3, 13), 119)])
def test_up_to_3_12_objects_below_fifty_nested_ones_are_freed_after_these(release, level):
    grow = {"repeat": 119, "as": "i", "do": [{"bind": {"x": {"list": ["x"]}}}]}
    found = events(release, {"bind": {"x": {"list": []}}}, grow, {"drop": ["x"]})
    items = [block for op, domain, size, block in found if op == CALLOC and domain == MEM]
    first_freed = next(block for op, domain, _, block in found if op == FREE and domain == MEM)
    assert items[-level] == first_freed  # the list at this level; the innermost one, at level 120, has no items


@given(st.integers(0, 10_000), st.sampled_from(RELEASES))
def test_everything_that_cannot_be_reached_is_gone_after_a_full_collection(seed, release):
    document = random_document(seed)
    document["functions"]["body"] = {"do": document["main"]}
    document["main"] = [{"call": "body"}, {"collector": "unfreeze"}, {"collect": 2}]
    program = object_program(document)
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:
        assert references(machine) == ([], [])
        generations = machine.heap.generations
        assert (machine.heap.objects["next"][generations["ring"]] == generations["ring"]).all()
        assert (generations["count"] >= 0).all()


@pytest.mark.parametrize(("release", "collected"), [((3, 13), 3), ((3, 14), 2)])
def test_from_3_14_on_a_tuple_of_an_untracked_tuple_is_tracked_and_a_tuple_of_numbers_is_not(release, collected):
    cycle = {"bind": {"xs": {"list": []}, "n": 5}}, {"bind": {"t": {"tuple": [{"tuple": ["n"]}]}}}
    fill = {"append": "t", "to": "xs"}, {"append": "xs", "to": "xs"}, {"drop": ["xs", "t"]}
    _, last = simulate(object_program({"main": [*cycle, *fill, {"collect": 0}]}), release)
    assert last.generations["collected"][0] == collected


def test_a_collection_visits_the_tracked_objects_of_its_generation_and_younger_ones():
    lists = {"bind": {"xs": {"list": ["n"]}, "ys": {"list": []}}}
    more = {"bind": {"t": {"tuple": ["n"]}, "zs": {"list": []}}}
    statements = [{"bind": {"n": 5}}, lists, {"collect": 0}, more, {"collect": 0}, {"collect": 1}, {"collect": 2}]
    for release, of_tuple in ((3, 13), 1), ((3, 14), 0):  # 3.13 untracks the tuple in the collection
        visits, _ = model_visits(object_program({"main": statements}), release)
        assert visits == [(0, 2), (0, 1 + of_tuple), (1, 3), (2, 3)]


def test_frozen_objects_are_visited_no_more():
    nodes = {"repeat": 10, "as": "i", "do": [{"append": {"new": "Node"}, "to": "xs"}]}
    main = [{"bind": {"xs": {"list": []}}}, nodes, {"collect": 0}, {"collector": "freeze"}, nodes, {"collect": 2}]
    for release in RELEASES:
        assert [each for _, each in model_visits(object_program({"classes": NODE, "main": main}), release)[0]] == [
            11,
            10,
        ]
