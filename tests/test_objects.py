"""Object programs: their language, their mistakes, and the memory they request."""

import json
import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from object_programs import NODE, dying_containers, events, object_program, random_program, references

from replay.jit.arrays import DONE
from replay.objects import load_objects
from replay.objects.code import compile_program
from replay.objects.kinds import KINDS, Kind
from replay.objects.language import Program
from replay.objects.loop import run_machine
from replay.objects.machine import FRAMES_KEPT
from replay.objects.rules import RELEASES, free_list_limits
from replay.objects.running import new_machine, run_program
from replay.objects.twin import write_twin
from replay.sources import open_source
from replay.support.bundled_files import find_workload, object_program_names
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import verify_objects
from replay.verification.visits import compared_visits

INTERPRETERS = find_object_oracles()
MALLOC, CALLOC, REALLOC, FREE = Op.MALLOC, Op.CALLOC, Op.REALLOC, Op.FREE
MEM, OBJ = Domain.MEM, Domain.OBJ


# Sequences computed by hand


@pytest.mark.parametrize(("release", "size"), [((3, 10), 28), ((3, 13), 28), ((3, 14), 32)])
def test_a_length_is_an_integer_of_the_smallest_size_up_to_3_13(release, size):
    grow = {"repeat": 1025, "as": "i", "do": [{"append": "one", "to": "xs"}]}
    found = events(release, {"bind": {"xs": {"list": []}, "one": 1}}, grow, {"bind": {"n": {"length": "xs"}}})
    assert [event[2] for event in found if event[0] == MALLOC and event[1] == OBJ][-1] == size


@pytest.mark.parametrize(("release", "capacities"), [((3, 8), (4, 8, 16)), ((3, 9), (4, 8, 16)), ((3, 15), (4, 8, 16))])
def test_a_list_grows_by_more_than_one_item(release, capacities):
    grow = {"repeat": 9, "as": "i", "do": [{"append": "i", "to": "xs"}]}
    found = events(release, {"bind": {"xs": {"list": []}}}, grow)
    vectors = [(op, size) for op, domain, size, _ in found if domain == MEM and op != FREE]
    assert vectors == [(MALLOC, 8 * capacities[0]), *((REALLOC, 8 * capacity) for capacity in capacities[1:])]


def test_items_of_a_list_die_before_its_memory_and_the_last_one_first():
    first, second = {"letters": 10}, {"letters": 20}
    assert events((3, 12), {"bind": {"xs": {"list": [first, second]}}}) == [
        (MALLOC, OBJ, 51, 1),
        (MALLOC, OBJ, 61, 2),
        (MALLOC, OBJ, 56, 3),
        (CALLOC, MEM, 16, 4),
        (FREE, OBJ, 61, 2),
        (FREE, OBJ, 51, 1),
        (FREE, MEM, 16, 4),
    ]


def test_slots_of_an_instance_die_in_the_order_of_their_names():
    setting = {"set": {"node.value": {"letters": 10}, "node.next": {"letters": 20}}}
    found = events((3, 12), {"bind": {"node": {"new": "Node"}}}, setting)
    assert found == [
        (MALLOC, OBJ, 48, 1),
        (MALLOC, OBJ, 51, 2),
        (MALLOC, OBJ, 61, 3),
        (FREE, OBJ, 61, 3),
        (FREE, OBJ, 51, 2),
        (FREE, OBJ, 48, 1),
    ]


def test_a_tuple_takes_the_memory_of_a_dead_one_of_the_same_length():
    pair = {"tuple": [{"half": "n"}, 1]}
    statements = [{"bind": {"n": 2}}, {"bind": {"x": pair}}, {"drop": ["x"]}, {"bind": {"y": pair}}, {"drop": ["y"]}]
    assert events((3, 12), *statements) == [(MALLOC, OBJ, 24, 1), (MALLOC, OBJ, 56, 2)]


@pytest.mark.parametrize(("release", "iterators", "freed"), [((3, 13), 22, 22), ((3, 14), 22, 2), ((3, 15), 0, 0)])
def test_list_and_tuple_iterators_have_free_lists_of_their_own_in_3_14(release, iterators, freed):
    def nested(name):
        body = [{"bind": {"last": 0}}]
        for _ in range(11):
            body = [{"each": name, "as": "x", "do": body}]
        return body

    start = {"bind": {"xs": {"list": [1]}, "pair": {"tuple": ["xs"]}}}
    found = events(release, start, *nested("xs"), *nested("pair"))
    assert [op for op, _, size, _ in found if size == 48].count(MALLOC) == iterators + (release < (3, 14))
    assert [op for op, _, size, _ in found if size == 48].count(FREE) == freed


@pytest.mark.parametrize(("release", "first_freed"), [((3, 13), 51), ((3, 14), 61)])
def test_local_variables_die_from_the_first_on_up_to_3_13_and_from_the_last_on_since(release, first_freed):
    found = events(release, {"bind": {"a": {"letters": 10}, "b": {"letters": 20}}})
    assert next(size for op, _, size, _ in found if op == FREE) == first_freed


@pytest.mark.parametrize(("release", "lasts"), [((3, 10), True), ((3, 11), False)])
def test_up_to_3_10_the_caller_keeps_arguments_that_the_function_drops(release, lasts):
    function = {"parameters": ["a"], "do": [{"drop": ["a"]}, {"bind": {"b": {"letters": 100}}}]}
    header = 49 if release < (3, 12) else 41
    found = events(release, {"call": "f", "with": [{"letters": 10}]}, functions={"f": function})
    order = [(op, size) for op, domain, size, _ in found if size in (header + 10, header + 100)]
    freed, made = order.index((FREE, header + 10)), order.index((MALLOC, header + 100))
    assert (freed > made) is lasts


@pytest.mark.parametrize(("release", "bytes_"), [((3, 8), 368), ((3, 9), 368), ((3, 10), 360)])
def test_up_to_3_10_a_call_allocates_a_frame_and_the_function_keeps_it(release, bytes_):
    # one local variable and a stack of one value in f; none and two values (function, argument) in main
    function = {"parameters": ["a"], "do": [{"return": "a"}]}
    call = {"call": "f", "with": [0]}
    frames = [(MALLOC, OBJ, 16 + bytes_ + 8 * 2, 1), (MALLOC, OBJ, 16 + bytes_ + 8 * 2, 2)]
    assert events(release, call, call, functions={"f": function}) == frames


@pytest.mark.parametrize(("release", "largest"), [((3, 14), 256), ((3, 15), 1024)])
def test_small_integers_exist_once(release, largest):
    grow = [{"bind": {"n": largest - 1}}, {"bind": {"a": {"sum": ["n", 1]}}}, {"bind": {"b": {"sum": ["n", 2]}}}]
    assert events(release, *grow) == [(MALLOC, OBJ, 32, 1)]  # kept for the next integer


def test_an_integer_of_two_digits_is_added_in_memory_for_three():
    found = events((3, 12), {"bind": {"n": 1 << 30}}, {"bind": {"x": {"sum": ["n", 1]}}})
    assert found == [(MALLOC, OBJ, 36, 1), (FREE, OBJ, 36, 1)]


@pytest.mark.parametrize(
    ("release", "right_first_from"), [((3, 10), 99), ((3, 11), 8), ((3, 12), 2), ((3, 14), 2), ((3, 15), 1)]
)
def test_specialised_sums_drop_the_right_operand_first(release, right_first_from):
    total = {"sum": [{"sum": ["n", 1]}, {"sum": ["n", "m"]}]}
    loop = {"repeat": 10, "as": "i", "do": [{"bind": {"x": total}}]}
    found = events(release, {"bind": {"n": 1 << 31, "m": 1 << 31, "x": 0}}, loop)
    made = [block for op, _, size, block in found if op == MALLOC and size == 36]
    freed = [block for op, _, size, block in found if op == FREE and size == 36]
    runs = [freed.index(made[3 * run + 1]) < freed.index(made[3 * run]) for run in range(10)]
    assert runs == [run >= right_first_from for run in range(1, 11)]


def test_a_list_that_was_cleared_frees_its_memory_after_its_items():
    statements = [{"bind": {"xs": {"list": [{"letters": 10}]}}}, {"clear": "xs"}, {"bind": {"y": {"letters": 30}}}]
    found = events((3, 12), *statements)
    assert [(op, size) for op, _, size, _ in found][3:] == [(FREE, 51), (FREE, 8), (MALLOC, 71), (FREE, 71)]


def stores(count, name="d", first=0):
    """Statements that store a number under each of so many integers."""
    at = {"sum": ["i", first]} if first else "i"
    return {"repeat": count, "as": "i", "do": [{"store": 0, "into": name, "at": at}]}


def tables(release, *main):
    """The sizes of the tables of dicts that a program allocates, in order."""
    domain = OBJ if release <= (3, 12) else MEM
    return [size for op, where, size, _ in events(release, *main) if op == MALLOC and where == domain and size > 80]


@pytest.mark.parametrize(
    ("release", "sizes"),
    [((3, 8), [168, 296, 576, 1112]), ((3, 11), [160, 288, 568, 1104]), ((3, 15), [160, 288, 568, 1104])],
)
def test_a_dict_grows_when_two_thirds_of_its_slots_are_used(release, sizes):
    found = tables(release, {"bind": {"d": {"dict": []}}}, stores(22))
    assert found[release <= (3, 10) :] == sizes  # 8, 16, 32 and 64 slots; the first is the frame of main


def test_a_dict_whose_keys_are_texts_has_smaller_entries():
    assert tables((3, 13), {"bind": {"d": {"dict": [[{"text": "a"}, 1]]}}}) == [120]
    assert tables((3, 13), {"bind": {"d": {"dict": [[{"text": "a"}, 1], [1, 2]]}}}) == [120, 160]


@pytest.mark.parametrize(("release", "sizes"), [((3, 13), [120, 160]), ((3, 13, 3), [120, 288])])
def test_a_dict_of_one_key_was_moved_to_sixteen_slots_from_3_10_up_to_3_13_3(release, sizes):
    assert tables(release, {"bind": {"d": {"dict": [[{"text": "a"}, 1], [1, 2]]}}}) == sizes


@pytest.mark.parametrize(("release", "aside"), [((3, 13), []), ((3, 14), [(MALLOC, MEM, 104, 1)])])
def test_a_display_of_six_pairs_creates_the_table_first(release, aside):
    found = events(release, {"bind": {"d": {"dict": [[key, 0] for key in range(6)]}}})
    table = len(aside) + 1
    assert found[: len(aside) + 2] == [*aside, (MALLOC, MEM, 288, table), (MALLOC, OBJ, 64, table + 1)]
    assert found[len(aside) + 2 :] == [*((FREE, *event[1:]) for event in aside), (FREE, MEM, 288, table)]


def test_each_key_of_a_dict_dies_before_its_value_and_all_before_the_table():
    pairs = [[{"letters": 10}, {"letters": 20}], [{"letters": 30}, {"letters": 40}]]
    found = events((3, 12), {"bind": {"d": {"dict": pairs}}}, {"clear": "d"})
    assert [size for op, _, size, _ in found if op == FREE] == [51, 61, 71, 81]  # the table and the dict are kept


def test_a_deleted_key_makes_no_room_in_the_table():
    change = {"repeat": 5, "as": "i", "do": [{"store": 0, "into": "d", "at": "i"}, {"delete": "d", "at": "i"}]}
    assert tables((3, 13), {"bind": {"d": {"dict": []}}}, change, stores(1)) == [160, 160]


def test_a_loop_over_a_dict_has_an_iterator_and_yields_the_keys_in_the_order_of_insertion():
    statements = [{"bind": {"d": {"dict": [[7, 0], [3, 0]]}, "xs": {"list": []}}}]
    loop = {"each": "d", "as": "k", "do": [{"append": {"letters": {"product": ["k", 10]}}, "to": "xs"}]}
    found = events((3, 15), *statements, loop)
    assert [size for op, domain, size, _ in found if op == MALLOC and domain == OBJ] == [64, 56, 72, 111, 71]


def test_texts_of_the_same_letters_are_the_same_key():
    pairs = [[{"text": "xxx"}, 1], [{"letters": 3}, 2], [{"text": "yyy"}, 3]]
    found = events((3, 12), {"bind": {"d": {"dict": pairs}}}, {"bind": {"x": {"letters": {"length": "d"}}}})
    assert (MALLOC, OBJ, 43, 4) in found


def test_the_first_key_is_the_oldest_that_is_left():
    statements = [{"bind": {"d": {"dict": [[7, 0], [20, 0]]}}}, {"delete": "d", "at": 7}]
    found = events((3, 12), *statements, {"bind": {"x": {"letters": {"first_key": "d"}}}})
    assert [size for op, _, size, _ in found if op == MALLOC] == [64, 160, 72, 61]


OPEN = {"Node": {}}
"""A class whose instances have a dict."""


def sizes(release, *main):
    """The sizes that a program with such a class allocates, in order."""
    return [size for op, _, size, _ in events(release, *main, classes=OPEN) if op == MALLOC]


@pytest.mark.parametrize(
    ("release", "found"),
    [((3, 10), [48, 40, 64]), ((3, 11), [56, 264]), ((3, 12), [48, 264]), ((3, 13), [328]), ((3, 15), [328])],
)
def test_the_first_instance_of_a_class_has_room_for_many_attributes(release, found):
    setting = {"set": {"node.a": 1, "node.b": 2}}
    allocated = sizes(release, {"bind": {"node": {"new": "Node"}}}, setting)
    assert allocated[release <= (3, 10) :] == found  # the first is the frame of main


@pytest.mark.parametrize(("release", "last", "first"), [((3, 12), 32, 27), ((3, 13), 88, 28)])
def test_later_instances_have_room_for_one_attribute_more_than_was_set(release, last, first):
    make = [{"bind": {"node": {"new": "Node"}}}, {"set": {"node.a": 1, "node.b": 2}}]
    found = sizes(release, {"repeat": 40, "as": "i", "do": make})
    assert found[-1] == last
    assert found.count(last) == 41 - first


def test_up_to_3_10_a_sixth_attribute_moves_the_shared_keys():
    names = ["a", "b", "c", "d", "e", "f"]
    setting = {"set": {f"node.{name}": 0 for name in names}}
    found = events((3, 10), {"bind": {"node": {"new": "Node"}}}, setting, classes=OPEN)
    assert found[1:] == [
        (MALLOC, OBJ, 48, 2),
        (MALLOC, MEM, 40, 3),
        (MALLOC, OBJ, 64, 4),
        (MALLOC, OBJ, 296, 5),
        (FREE, MEM, 40, 3),
        (MALLOC, MEM, 80, 6),
        (FREE, MEM, 80, 6),
        (FREE, OBJ, 48, 2),  # the dict is kept, the keys are those of the class
    ]


def test_up_to_3_10_another_order_of_attributes_ends_the_sharing_of_keys():
    first = [{"bind": {"a": {"new": "Node"}}}, {"set": {"a.x": 0, "a.y": 0}}]
    second = [{"bind": {"b": {"new": "Node"}}}, {"set": {"b.y": 0, "b.x": 0}}]
    third = [{"bind": {"c": {"new": "Node"}}}, {"set": {"c.x": 0}}]
    assert sizes((3, 9), *first, *second, *third)[1:] == [48, 40, 64, 48, 40, 64, 168, 48, 64, 168]


def test_from_3_11_on_an_attribute_without_room_moves_all_to_a_dict():
    late = [{"set": {"node.b": 2, "node.c": 3}}]
    make = {"repeat": 40, "as": "i", "do": [{"bind": {"node": {"new": "Node"}}}, {"set": {"node.a": {"half": "i"}}}]}
    found = events((3, 12), make, *late, classes=OPEN)
    values = max(block for op, domain, _, block in found if op == MALLOC and domain == MEM)
    moved = [event[:3] for event in found[found.index((FREE, MEM, 24, values)) - 2 :]]
    assert moved == [
        (MALLOC, OBJ, 64),
        (MALLOC, OBJ, 208),
        (FREE, MEM, 24),
        (FREE, OBJ, 208),
        (FREE, OBJ, 48),
    ]


def adds(count, step=1):
    """A statement that adds so many multiples of a step to the set `s`."""
    return {"repeat": count, "as": "i", "do": [{"add": {"product": ["i", step]}, "to": "s"}]}


@pytest.mark.parametrize("release", [(3, 8), (3, 12), (3, 15)])
def test_a_set_has_eight_slots_inside_and_grows_fourfold(release):
    found = events(release, {"bind": {"s": {"set": []}}}, adds(77))
    objects = [size for op, domain, size, _ in found if op == MALLOC and domain == OBJ]
    changes = [(op, size) for op, domain, size, _ in found if domain == MEM]
    assert 216 in objects
    assert changes == [(MALLOC, 512), (MALLOC, 2048), (FREE, 512), (MALLOC, 8192), (FREE, 2048), (FREE, 8192)]


@pytest.mark.parametrize(("release", "size"), [((3, 8), 512), ((3, 9), 256)])
def test_a_display_of_constants_is_an_update_by_a_frozenset_from_3_9_on(release, size):
    found = events(release, {"bind": {"s": {"set": [1, 2, 3, 4, 5, 6]}}})
    assert [size for op, domain, size, _ in found if op == MALLOC and domain == MEM] == [size]


def test_elements_of_a_set_die_in_the_order_of_their_slots():
    numbers = [{"product": ["n", 1 << 20]}, {"sum": ["n", 1]}, {"product": ["n", "n"]}]
    found = events((3, 12), {"bind": {"n": 1030}}, {"bind": {"s": {"set": numbers}}})
    freed = [block for op, _, _, block in found if op == FREE]
    assert freed == [1, 3, 2, 4]  # of 8 slots, these are in slots 0, 4 and 7; then the set


@pytest.mark.parametrize(("release", "grown"), [((3, 8), []), ((3, 9), [256]), ((3, 10), [])])
def test_an_added_element_takes_the_slot_of_a_discarded_one_except_in_3_9(release, grown):
    change = [{"discard": 0, "from": "s"}, {"add": 8, "to": "s"}, {"discard": 8, "from": "s"}, {"add": 0, "to": "s"}]
    statements = [{"bind": {"s": {"set": [0, 8, 2]}}}, {"discard": 8, "from": "s"}, *change, {"add": 3, "to": "s"}]
    found = events(release, *statements)
    assert [size for op, domain, size, _ in found if op == MALLOC and domain == MEM] == grown


# The language


def test_a_twin_is_the_same_program_in_python():
    choice = {"choose": 0.25, "do": [{"drop": ["x"]}], "otherwise": [{"pop": "n"}]}
    program = object_program(
        {
            "classes": NODE,
            "functions": {"push": {"parameters": ["head"], "do": [{"return": {"tuple": ["head", 1]}}]}},
            "main": [
                {"bind": {"n": {"product": [{"sum": [1, 2]}, 3]}, "x": {"call": "push", "with": [{"letters": 5}]}}},
                {"repeat": 2, "as": "i", "do": [choice]},
                {"each": "x", "as": "y", "do": [{"store": {"half": "y"}, "into": "n", "at": {"length": "x"}}]},
                {"bind": {"d": {"dict": [[1, "n"], [{"text": "a"}, {"dict": []}]]}}},
                {"bind": {"s": {"set": [1, "n"]}, "t": {"set": []}}},
                {"add": {"sum": ["n", 1]}, "to": "s"},
                {"discard": 5, "from": "s"},
                {"if_key": {"sum": ["n", 1]}, "in": "d", "do": [{"delete": "d", "at": {"first_key": "d"}}]},
            ],
        }
    )
    assert write_twin(program.program) == textwrap.dedent(
        """\
        def push(head):
            return (head, 1, )
        def main():
            n = (1 + 2) * 3
            x = push(LETTER * 5)
            for i in range(2):
                if next(CHOICES) < 64:
                    del x
                else:
                    n.pop()
            for y in x:
                n[len(x)] = y * 0.5
            d = {1: n, 'a': {}}
            s = {1, n}
            t = set()
            s.add(n + 1)
            s.discard(5)
            if (n + 1) in d:
                del d[next(iter(d))]
        class Node:
            __slots__ = ('value', 'next')
        """
    )


AT_LEAST_TWO = "should have at least 2 items, not 1"
PROGRAM = """\
kind: objects
classes:
  Node: {slots: [value, next]}
functions:
  push:
    parameters: [head]
    do:
      - bind: {node: {new: Node}}
      - set: {node.next: head}
      - return: node
main:
  - bind: {xs: {list: [1]}, n: 5}
  - repeat: 3
    as: i
    do:
      - append: {call: push, with: [i]}
        to: xs
  - drop: [n]
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (": objects", ": objcts", "1: kind: unknown kind 'objcts'; write `kind: objects`, or none for a workload"),
        ("append:", "apend:", "16: main.1.do.0: unknown statement 'apend'; did you mean 'append'?"),
        ("{new:", "{knew:", "8: functions.push.do.0.bind.node: unknown expression 'knew'; did you mean 'new'?"),
        ("to: xs", "too: xs", "17: main.1.do.0.too: unknown key; did you mean 'to'?"),
        ("slots:", "slot:", "3: classes.Node.slot: unknown key; did you mean 'slots'?"),
        ("with: [i]", "wth: [i]", "16: main.1.do.0.append.wth: unknown key; did you mean 'with'?"),
        ("repeat: 3", "repeat: -3", "13: main.1.repeat: -3 should be greater than or equal to 0"),
        ("n: 5", "n: 5.5", "12: main.0.bind.n: 5.5 is not an expression; write a whole number, a name or a mapping"),
        ("  - drop: [n]", "  - 7", "18: main.2: 7 is not a statement; write a mapping such as `drop: [x]`"),
        ("new: Node", "new: Nod", "8: functions.push.do.0: unknown class 'Nod'; did you mean 'Node'?"),
        ("call: push", "call: pull", "16: main.1.do.0: unknown function 'pull'; known here: push"),
        ("with: [i]", "with: [i, i]", "16: main.1.do.0: push has 1 parameters, and is called with 2"),
        ("to: xs", "to: ys", "16: main.1.do.0: 'ys' is not bound here; known here: xs, n, i"),
        ("node.next", "node.nxt", "9: functions.push.do.1: no class has the attribute 'nxt'; did you mean 'next'?"),
        ("- drop: [n]", "- return: 1\n  - drop: [n]", "19: main.3: is never reached, because it is after `return`"),
        ("drop: [n]", "drop: [n, n]", "18: main.2: the variable 'n' is not bound"),
        ("to: xs", "to: n", "16: main.1.do.0: expected a list"),
        ("return: node", "return: node.value", "10: functions.push.do.2: the attribute 'value' has no value yet"),
        ("return: node", "return: {item: head, at: 0}", "10: functions.push.do.2: expected a list, tuple or dict"),
        ("drop: [n]", "bind: {m: {item: xs, at: 4}}", "18: main.2: the index 4 is not below the length, 4"),
        ("drop: [n]", "{store: 1, into: n, at: 0}", "18: main.2: expected a list or dict"),
        ("drop: [n]", "{delete: xs, at: 0}", "18: main.2: expected a dict"),
        ("n: 5", "n: {dict: [[1]]}", f"12: main.0.bind.n.dict.0: [1] {AT_LEAST_TWO}"),
        ("n: 5", "n: {dict: [[1, 2], [xs, 3]]}", "12: main.0: a key is an integer or a text"),
        ("n: 5", "n: {dict: [[1, {first_key: xs}]]}", "12: main.0: expected a dict"),
        ("drop: [n]", "bind: {m: {dict: []}, k: {first_key: m}}", "18: main.2: the dict is empty"),
        ("drop: [n]", "bind: {m: {dict: []}, k: {item: m, at: 5}}", "18: main.2: the dict has no key 5"),
        ("drop: [n]", "bind: {m: {dict: []}, k: {item: m, at: {text: ab}}}", "18: main.2: the dict has no key 'ab'"),
        ("drop: [n]", "bind: {m: {dict: []}, k: {item: m, at: {letters: 9}}}",
         "18: main.2: the dict has no key 'x' * 9"),
        ("n: 5", "n: {set: [1, xs]}", "12: main.0: expected an integer"),
        ("drop: [n]", "{add: 1, to: xs}", "18: main.2: expected a set"),
        ("drop: [n]", "{bind: {m: {set: []}}}\n  - {discard: xs, from: m}", "19: main.3: expected an integer"),
        ("drop: [n]", "{if_key: 1, in: xs, do: [{pop: xs}]}", "18: main.2: expected a dict or set"),
        ("drop: [n]", "bind: {m: {sum: [xs, 1]}}", "18: main.2: expected an integer"),
        ("[1]}, n: 5", f"[1]}}, n: {(1 << 60) - 1}", None),
        (": node\n", ": {call: push, with: [0]}\n", "10: functions.push.do.2: calls are nested more than 900 deep"),
    ],
)  # fmt: skip
def test_a_mistake_is_reported_with_file_line_and_key(tmp_path, old, new, message):
    path = tmp_path / "program.yaml"
    path.write_text(PROGRAM.replace(old, new), encoding="utf-8")
    if message is None:
        assert sum(batch.rows for batch in open_source(path).batches()) > 0
        return
    with pytest.raises(WorkloadError) as error:
        list(open_source(path).batches())
    assert str(error.value) == f"{path}:{message}"


def test_two_parameters_of_the_same_name_are_a_mistake():
    function = {"parameters": ["a", "a"], "do": [{"return": "a"}]}
    program = Program.model_validate({"kind": "objects", "functions": {"f": function}, "main": [{"bind": {"x": 0}}]})
    assert compile_program(program) == (None, [(("functions", "f", "parameters"), "two have the same name")])


def test_a_dict_that_changes_in_a_loop_over_it_is_a_mistake():
    loop = {"each": "d", "as": "k", "do": [{"store": 0, "into": "d", "at": 2}]}
    with pytest.raises(WorkloadError, match=r"main\.1: the dict has other keys than at the start of the loop over it"):
        events((3, 12), {"bind": {"d": {"dict": [[1, 0]]}}}, loop)


def test_an_attribute_that_no_statement_sets_is_a_mistake(tmp_path):
    path = tmp_path / "program.yaml"
    path.write_text(PROGRAM.replace("slots: [value, next]", "").replace("return: node", "return: node.nxt"))
    with pytest.raises(WorkloadError, match=r"functions\.push\.do\.2: no class has the attribute 'nxt'"):
        load_objects(path)


def test_a_variable_cannot_have_the_name_of_a_class_that_is_called_in_the_same_function():
    function = {"parameters": ["f"], "do": [{"bind": {"Node": 0}}]}
    calls = [{"bind": {"f": 0, "Node": {"new": "Node"}}}, {"call": "f", "with": ["f"]}]
    document = {"classes": NODE, "functions": {"f": function, "g": {"do": calls}}, "main": [{"bind": {"g": 0}}]}
    _, problems = compile_program(Program.model_validate({"kind": "objects", **document}))
    assert problems == [
        (("functions", "g", "do", 0), "'Node' is a variable here, so the class cannot be called here"),
    ]


def test_a_class_cannot_have_the_name_of_a_function():
    document = {"classes": NODE, "functions": {"Node": {"do": [{"return": 0}]}}, "main": [{"bind": {"g": 0}}]}
    _, problems = compile_program(Program.model_validate({"kind": "objects", **document}))
    assert problems == [(("classes", "Node"), "is the name of a function too")]


@pytest.mark.parametrize("name", ["while", "range", "main"])
def test_names_that_mean_something_else_in_python_are_refused(name):
    document = {"kind": "objects", "main": [{"bind": {name: 0}}]}
    with pytest.raises(ValueError, match=f"'{name}' has a meaning in Python"):
        Program.model_validate(document)


@pytest.mark.parametrize(
    ("statement", "feature"),
    [
        ({"sleep": "1ms"}, "threads"),
        ({"bind": {"x": {"lock": []}}}, "threads"),
    ],
)
def test_features_that_cannot_be_combined_are_refused_by_name(statement, feature):
    document = {"kind": "objects", "functions": {"g": {"do": [{"yield": 1}]}}, "main": [{"bind": {"x": 1}}, statement]}
    _, problems = compile_program(Program.model_validate(document))
    assert problems == [(("functions", "g"), f"generators are not supported in a program with {feature} yet")]


def test_threads_run_inner_functions_and_methods():
    made = {"bind": {"x": {"new": "K"}}}
    functions = {"work": {"do": [made, {"define": "f", "do": [{"return": "x"}]}, {"bind": {"y": {"call": "f"}}}]}}
    methods = {"__init__": {"parameters": [], "do": [{"set": {"self.a": {"letters": 50}}}]}}
    document = {"classes": {"K": {"methods": methods}}, "functions": functions, "main": [{"start": "work"}, made]}
    program = object_program(document)
    for oracle in INTERPRETERS.values():
        assert verify_objects(program, oracle).different == 0


@pytest.mark.parametrize("operation", ["sum", "product"])
def test_an_integer_that_is_too_large_is_a_mistake(operation):
    largest = (1 << 60) - 1
    with pytest.raises(WorkloadError, match=f"main.1: the integer exceeds the largest one, {largest}"):
        events((3, 12), {"bind": {"n": largest}}, {"bind": {"x": {operation: ["n", 2]}}})


# Invariants


def kept_blocks(machine):
    """The blocks that live at the end of a program: those in free lists, frames that wait for calls, the tables of keys
    that classes share with their instances, and in 3.12 the frame object of the function that called `main`, if there
    is one."""
    heap, state = machine.heap, machine.state[0]
    kept = [heap.kept[which, : heap.kept_counts[which]] for which in range(len(heap.kept))]
    frames = [*machine.functions["block"], *machine.kept_frames["block"][: state.frames_kept]]
    callers = machine.frames["block"][:1] if heap.rules["exit_bytes"] else []
    tables = heap.objects["block"][machine.classes["keys"]]
    return sorted(block for block in [*np.concatenate(kept), *frames, *callers, *tables] if block)


@given(st.integers(0, 10_000), st.sampled_from(RELEASES))
def test_blocks_are_freed_once_and_what_remains_is_kept_for_later_or_in_cycles(seed, release):
    program = random_program(seed)
    live = {}
    for batch in run_program(program, release):
        for op, domain, block, size, _ in batch.events.tolist():
            if op >= Op.GC_START:
                continue
            if op in (Op.MALLOC, Op.CALLOC):
                assert block not in live
                live[block] = domain, size
            elif op == Op.REALLOC:
                assert live[block][0] == domain
            else:
                assert live.pop(block)[0] == domain
    machine = new_machine(program.code, release, program.program)
    if run_machine(machine) == DONE:  # in one call: no table was replaced
        counted, found = references(machine)
        assert counted == found
        if not counted:
            assert sorted(live) == kept_blocks(machine)


@pytest.mark.parametrize("seed", range(12))
def test_compiled_and_plain_code_request_the_same_memory(seed):
    program = random_program(seed)
    compiled, plain = (new_machine(program.code, (3, 11), program.program) for _ in range(2))
    status = run_machine(compiled)
    if status != DONE:
        pytest.skip("takes more than one call of the machine, too long in plain Python")
    run_machine.py_func(plain)
    count = compiled.heap.counts[0].events
    assert (compiled.heap.events[:count] == plain.heap.events[:count]).all()
    assert plain.heap.counts[0].events == count


def test_free_lists_never_hold_more_than_their_limits():
    limits = free_list_limits((3, 14))
    assert limits[Kind.FLOAT] == 100
    assert limits[KINDS + 3] == 2000
    assert FRAMES_KEPT == 200
    many = {"repeat": 150, "as": "i", "do": [{"append": {"half": "i"}, "to": "xs"}]}
    found = events((3, 14), {"bind": {"xs": {"list": []}}}, many, {"clear": "xs"})
    assert [size for op, _, size, _ in found if op == FREE].count(24) == 50


# Real interpreters

system = pytest.mark.system
with_interpreters = pytest.mark.skipif(
    not INTERPRETERS, reason="no libpython from 3.8 on on this machine: see `replay verify --list`"
)
each_interpreter = pytest.mark.parametrize("version", INTERPRETERS)


@system
@with_interpreters
@each_interpreter
def test_bundled_programs_request_the_memory_that_real_interpreters_request(version):
    for name in object_program_names():
        agreement = verify_objects(load_objects(find_workload(name)), INTERPRETERS[version])
        assert agreement.difference == ""
        assert agreement.aside < 0.01 * agreement.events


@system
@with_interpreters
@each_interpreter
def test_random_programs_request_the_memory_that_real_interpreters_request(version):
    for seed in range(20):
        agreement = verify_objects(random_program(seed), INTERPRETERS[version])
        assert agreement.difference == "", f"seed {seed}"


@system
@with_interpreters
@each_interpreter
def test_functions_can_have_the_names_that_the_comparison_with_real_interpreters_uses(version):
    names = "start", "stop", "join", "choices"
    functions = {name: {"do": [{"return": {"letters": 20 + index}}]} for index, name in enumerate(names)}
    main = [{"bind": {"x": {"call": name}}} for name in names]
    program = object_program({"functions": functions, "main": main})
    assert verify_objects(program, INTERPRETERS[version]).difference == ""


@system
@with_interpreters
@each_interpreter
def test_containers_that_die_in_an_instruction_request_the_memory_that_real_interpreters_request(version):
    for times in (1, 20):  # in unspecialised and in specialised instructions
        for form, program in dying_containers(times).items():
            assert verify_objects(program, INTERPRETERS[version]).difference == "", form


@system
@with_interpreters
@each_interpreter
def test_collections_visit_the_objects_that_those_of_real_interpreters_visit(version):
    for program in [load_objects(find_workload("cyclic-graph")), *map(random_program, range(10))]:
        model, real = compared_visits(program, INTERPRETERS[version])
        assert model == real


@system
@with_interpreters
def test_the_command_prints_what_was_compared(replay, tmp_path):
    version = [*INTERPRETERS][-1]
    code, out, _ = replay("verify", "--objects", "records", "-a", version, "--json")
    (result,) = json.loads(out)
    assert code == 0
    assert {key: result[key] for key in ("program", "interpreter", "different")} == {
        "program": "records",
        "interpreter": f"cpython-{version}",
        "different": 0,
    }
    assert result["events"] > 20_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text-bufers"], "text-bufers: no bundled workload has this name; did you mean 'text-buffers'?"),
        (["web-service"], "web-service.yaml:1: is not an object program; those have `kind: objects`"),
        (["--libc"], "--objects cannot be combined with --libc, --sweep or --list"),
        (["-a", "2.7.0"], "no real allocator is available for '2.7.0': see `replay verify --list`"),
    ],
)  # fmt: skip
def test_a_wrong_choice_is_refused_in_one_sentence(replay, arguments, message):
    code, _, err = replay("verify", "--objects", *arguments)
    assert code == 2
    assert message in err
