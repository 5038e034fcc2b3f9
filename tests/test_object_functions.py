"""Functions in functions, methods and constructors of object programs."""

import textwrap

import pytest
from object_programs import NODE, events, object_program

from replay.objects.code import compile_program
from replay.objects.language import Program
from replay.objects.running import run_program
from replay.objects.twin import write_twin
from replay.support.errors import WorkloadError
from replay.trace import Domain, Op
from replay.verification.object_oracles import find_object_oracles
from replay.verification.objects import verify_objects

INTERPRETERS = find_object_oracles()
MALLOC, FREE = Op.MALLOC, Op.FREE


def obj(op, size, block):
    return (op, Domain.OBJ, size, block)


def problems(**document):
    _, found = compile_program(Program.model_validate({"kind": "objects", **document}))
    return found


def collected(release, *main, functions=None, classes=NODE):
    """The number of objects that collections of a program find, by generation."""
    program = object_program({"classes": classes, "functions": functions or {}, "main": list(main)})
    *_, last = run_program(program, release)
    return last.generations["collected"].tolist()


# Closures

READ = [{"bind": {"n": 5}}, {"define": "get", "do": [{"return": "n"}]}]


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        # the frame: 2 variables, and the closure, the code and its name on the stack
        ((3, 9), [obj(MALLOC, 384 + 5 * 8, 1), obj(MALLOC, 40, 2), obj(MALLOC, 48, 3), obj(MALLOC, 136, 4),
                  obj(FREE, 136, 4), obj(FREE, 40, 2)]),
        ((3, 12), [obj(MALLOC, 40, 1), obj(MALLOC, 48, 2), obj(MALLOC, 160, 3), obj(FREE, 160, 3), obj(FREE, 40, 1)]),
        # variables die from the last one on, so the closure has the last reference to the cell
        ((3, 14), [obj(MALLOC, 40, 1), obj(MALLOC, 56, 2), obj(MALLOC, 168, 3), obj(FREE, 40, 1), obj(FREE, 168, 3)]),
    ],
)  # fmt: skip
def test_a_closure_is_a_cell_for_each_variable_a_tuple_of_them_and_a_function(release, expected):
    assert events(release, *READ) == expected


def test_a_function_that_uses_no_variable_of_the_function_around_it_has_no_closure():
    found = events((3, 12), {"bind": {"n": 5}}, {"define": "get", "do": [{"bind": {"n": 1}}, {"return": "n"}]})
    assert found == [obj(MALLOC, 160, 1), obj(FREE, 160, 1)]


def test_a_nonlocal_variable_keeps_what_an_inner_function_binds():
    step = {"define": "step", "nonlocal": ["n"], "do": [{"bind": {"n": {"sum": ["n", 2000]}}}]}
    found = events((3, 12), {"bind": {"n": 1}}, step, {"call": "step"}, {"call": "step"})
    ints = [(op, block) for op, _, size, block in found if size == 32]
    assert ints == [(MALLOC, 4), (MALLOC, 5), (FREE, 4), (FREE, 5)]  # 2001 dies when 4001 is bound


def test_a_parameter_in_a_cell_is_kept_by_the_caller_up_to_3_10():
    make = {"parameters": ["a"], "do": [{"define": "get", "do": [{"return": "a"}]}, {"bind": {"a": 0}},
                                        {"bind": {"b": {"letters": 200}}}]}  # fmt: skip
    for release, expected in (((3, 10), [MALLOC, MALLOC, FREE, FREE]), ((3, 11), [MALLOC, FREE, MALLOC, FREE])):
        found = events(release, {"call": "make", "with": [{"letters": 100}]}, functions={"make": make})
        assert [op for op, _, size, _ in found if size in (149, 249)] == expected


@pytest.mark.parametrize("release", [(3, 8), (3, 11), (3, 12), (3, 15)])
def test_only_the_collector_frees_a_function_that_refers_to_itself(release):
    make = {"do": [{"define": "again", "do": [{"return": "again"}]}]}
    calls = {"repeat": 10, "as": "i", "do": [{"call": "make"}]}
    assert collected(release, calls, {"collect": 1}, functions={"make": make}) == [0, 30, 0]


def test_a_variable_that_is_called_hides_the_function_of_the_same_name():
    functions = {"f": {"do": [{"return": {"letters": 100}}]}, "g": {"do": [{"return": {"letters": 200}}]}}
    main = [{"call": "f"}, {"bind": {"h": "g"}}, {"call": "h"}, {"define": "g", "do": [{"return": {"letters": 300}}]}]
    found = events((3, 12), main[0], *main[1:3], functions=functions)
    assert [size for op, _, size, _ in found if op == MALLOC] == [141, 241]
    found = events((3, 12), main[3], {"call": "g"}, functions=functions)
    assert [size for op, _, size, _ in found if op == MALLOC] == [160, 341]


def test_arguments_of_a_call_of_a_captured_function_are_captured_too():
    inner = {"define": "inner", "do": [{"call": "get", "with": ["n"]}]}
    main = [{"bind": {"n": 5}}, {"define": "get", "parameters": ["x"], "do": [{"return": "x"}]}, inner]
    found = events((3, 12), *main)
    assert [size for op, _, size, _ in found if op == MALLOC] == [40, 40, 160, 56, 160]  # cells; get; a tuple, inner


# Methods

VIEW = {"View": {"slots": ["a"], "methods": {"show": {"parameters": ["n"], "do": [{"set": {"self.a": "n"}}]}}}}


def test_a_call_of_a_method_creates_no_bound_method():
    found = events((3, 12), {"bind": {"v": {"new": "View"}}}, {"call": "v.show", "with": [7]}, classes=VIEW)
    assert found == [obj(MALLOC, 40, 1), obj(FREE, 40, 1)]


@pytest.mark.parametrize(("release", "kept"), [((3, 8), True), ((3, 9), False), ((3, 13), False), ((3, 14), True)])
def test_a_method_as_a_value_is_a_bound_method_which_some_releases_keep(release, kept):
    bind = [{"bind": {"v": {"new": "View"}}}, {"bind": {"m": "v.show"}}, {"drop": ["m"]}, {"bind": {"m": "v.show"}}]
    found = [op for op, _, size, _ in events(release, *bind, classes=VIEW) if size == 64]
    assert found == ([MALLOC] if kept else [MALLOC, FREE, MALLOC, FREE])


def test_a_bound_method_keeps_its_instance():
    main = [{"bind": {"m": {"new": "View"}}}, {"bind": {"m": "m.show"}}, {"call": "m", "with": [{"letters": 80}]}]
    assert events((3, 12), *main, classes=VIEW) == [
        obj(MALLOC, 40, 1), obj(MALLOC, 64, 2), obj(MALLOC, 121, 3),
        obj(FREE, 121, 3), obj(FREE, 40, 1), obj(FREE, 64, 2),
    ]  # fmt: skip


def test_from_3_14_on_attributes_that_methods_assign_take_room_of_the_first_instance():
    fill = {"do": [{"set": {f"self.{name}": 1 for name in "dcba"}}]}
    for release, room in (((3, 13), 30), ((3, 14), 30)):
        found = events(release, {"bind": {"v": {"new": "V"}}}, classes={"V": {"methods": {"fill": fill}}})
        assert found[0] == obj(MALLOC, 48 + 32 + 8 * (room + 1), 1)
    made = [{"bind": {f"v{index}": {"new": "V"}}} for index in range(40)]
    sizes = [
        events(release, *made, classes={"V": {"methods": {"fill": fill}}})[39][2] for release in ((3, 13), (3, 14))
    ]
    assert sizes == [48 + 8 + 8 * 2, 48 + 8 + 8 * 6]  # one attribute more, of which there are 0 and 4


# Constructors

INIT = {"parameters": ["a"], "do": [{"bind": {"a": 0}}, {"bind": {"b": {"letters": 200}}}]}


@pytest.mark.parametrize(("release", "first_dies"), [((3, 12), [False, False]), ((3, 13), [False, True])])
def test_a_call_of_a_class_keeps_the_arguments_until_it_is_specialised(release, first_dies):
    new = {"repeat": 2, "as": "i", "do": [{"bind": {"x": {"new": "P", "with": [{"letters": 100}]}}}]}
    found = events(release, new, classes={"P": {"methods": {"__init__": INIT}}})
    order = [(op, size) for op, _, size, _ in found if size in (141, 241)]
    early = [(MALLOC, 141), (FREE, 141), (MALLOC, 241), (FREE, 241)]
    late = [(MALLOC, 141), (MALLOC, 241), (FREE, 241), (FREE, 141)]
    assert order == [event for is_early in first_dies for event in (early if is_early else late)]


def test_the_arguments_of_a_class_are_a_tuple_and_five_of_them_a_block_too():
    init = {"parameters": list("abcde"), "do": [{"set": {"self.a": "a"}}]}
    new = {"bind": {"x": {"new": "S", "with": [1, 2, 3, 4, 5]}}}
    assert events((3, 12), new, classes={"S": {"slots": ["a"], "methods": {"__init__": init}}}) == [
        obj(MALLOC, 80, 1), obj(MALLOC, 40, 2), (MALLOC, Domain.MEM, 48, 3), (FREE, Domain.MEM, 48, 3),
        obj(FREE, 40, 2),
    ]  # fmt: skip


# The language


def test_a_twin_has_the_functions_and_methods():
    program = object_program(
        {
            "classes": {
                "P": {"methods": {"__init__": {"parameters": ["a"], "do": [{"set": {"self.a": "a"}}]}}},
                "S": {"slots": ["a"], "methods": {"get": {"do": [{"return": "self.a"}]}}},
            },
            "main": [
                {"bind": {"n": 1, "p": {"new": "P", "with": ["n"]}}},
                {"define": "f", "parameters": ["x"], "nonlocal": ["n"], "do": [{"bind": {"n": {"call": "p.a"}}}]},
                {"call": "f", "with": ["f"]},
            ],
        }
    )
    assert write_twin(program.program) == textwrap.dedent(
        """\
        def main():
            n = 1
            p = P(n)
            def f(x):
                nonlocal n
                n = p.a()
            f(f)
        class P:
            def __init__(self, a):
                self.a = a
        class S:
            __slots__ = ('a',)
            def get(self):
                return self.a
        """
    )


@pytest.mark.parametrize(
    ("statement", "place", "message"),
    [
        ({"define": "f", "nonlocal": ["x"], "do": [{"bind": {"x": 0}}]}, ("nonlocal",),
         "'x' is a variable of no function around this one"),
        ({"define": "f", "parameters": ["a", "a"], "do": [{"return": "a"}]}, ("parameters",),
         "two have the same name"),
        ({"define": "f", "do": [{"return": "y"}]}, ("do", 0), "'y' is not bound here; none are known here"),
        ({"bind": {"v": {"new": "View", "with": [1]}}}, (), "View has no __init__, and is called with 1"),
        ({"bind": {"v": {"new": "P"}}}, (), "__init__ of P has 1 parameters, and is called with 0"),
        ({"call": "f", "with": [1]}, (), "unknown function 'f'; none are known here"),
    ],
)  # fmt: skip
def test_a_wrong_use_is_reported_with_its_place(statement, place, message):
    classes = {**VIEW, "P": {"methods": {"__init__": INIT}}}
    assert problems(classes=classes, main=[statement]) == [(("main", 0, *place), message)]


def test_a_constructor_that_returns_a_value_and_a_method_with_the_name_of_a_slot_are_refused():
    methods = {"__init__": {"do": [{"return": 0}]}, "a": {"do": [{"return": 0}]}}
    found = problems(classes={"P": {"slots": ["a"], "methods": methods}}, main=[{"bind": {"x": 0}}])
    assert found == [
        (("classes", "P", "methods", "a"), "is the name of a slot too"),
        (("classes", "P", "methods", "__init__", "do", 0), "__init__ returns no value"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [("__eq__", "only __init__ and __del__ are"), ("_hidden", "not supported"), ("class", "has a meaning")],
)
def test_other_special_methods_are_refused(name, message):
    document = {"classes": {"P": {"methods": {name: {"do": [{"return": 0}]}}}}, "main": [{"bind": {"x": 0}}]}
    with pytest.raises(ValueError, match=message):
        Program.model_validate({"kind": "objects", **document})


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ({"call": "n"}, "expected a function or bound method"),
        ({"call": "g"}, "the function has 1 parameters, and is called with 0"),
        ({"call": "v.show"}, "the function has 1 parameters, and is called with 0"),
        ({"call": "v.a"}, "the attribute 'a' has no value yet"),
        ({"call": "n.show"}, "this object has no attribute 'show'"),
        ({"set": {"o.show": 0}}, "'show' is a method of this object, and cannot be set"),
        ({"call": "later"}, "the variable 'm' is not bound"),
    ],
)
def test_a_wrong_call_is_a_mistake_of_the_running_program(statement, message):
    show = {"methods": {"show": {"do": [{"return": 0}]}}}
    main = [
        {"bind": {"n": 5, "g": "f", "v": {"new": "View"}, "o": {"new": "Open"}}},
        {"define": "later", "do": [{"return": "m"}]},
        statement,
        {"bind": {"m": 0}},
    ]
    functions = {"f": {"parameters": ["a"], "do": [{"return": "a"}]}}
    with pytest.raises(WorkloadError, match=f"{message}$"):
        events((3, 12), *main, functions=functions, classes={**VIEW, "Open": show})


def test_constructors_in_constructors_take_two_levels_of_the_limit_each():
    init = {"parameters": [], "do": [{"set": {"self.a": {"new": "P"}}}]}
    with pytest.raises(WorkloadError, match="calls are nested more than 900 deep"):
        events((3, 12), {"bind": {"p": {"new": "P"}}}, classes={"P": {"methods": {"__init__": init}}})


# Real interpreters

each_interpreter = pytest.mark.parametrize("version", INTERPRETERS)
MARKS = [
    pytest.mark.system,
    pytest.mark.skipif(not INTERPRETERS, reason="no libpython from 3.8 on on this machine: see `replay verify --list`"),
]


def real(test):
    """Marks a test of all interpreters."""
    for mark in MARKS:
        test = mark(test)
    return each_interpreter(test)


@real
def test_deep_calls_and_long_argument_lists_request_the_memory_that_real_interpreters_request(version):
    many = [f"a{index}" for index in range(11)]
    texts = [{"letters": 50 + index} for index in range(11)]
    classes = {
        f"C{count}": {"methods": {"__init__": {"parameters": many[:count], "do": [{"bind": {"a0": 0}}]}}}
        for count in (1, 5, 8, 11)
    }
    again = {"choose": 0.99, "do": [{"call": "deep", "with": ["y"]}]}
    deep = {"parameters": ["x"], "do": [{"bind": {"y": {"letters": 60}}}, again]}
    calls = [{"bind": {"x": {"new": f"C{count}", "with": texts[:count]}}} for count in (1, 5, 8, 11)]
    main = [{"repeat": 5, "as": "i", "do": [*calls, {"call": "deep", "with": ["i"]}]}]
    program = object_program({"classes": classes, "functions": {"deep": deep}, "main": main, "seed": 4})
    assert verify_objects(program, INTERPRETERS[version]).difference == ""


@real
def test_chains_that_end_with_a_call_request_the_memory_that_real_interpreters_request(version):
    init = {"parameters": ["inner"], "do": [{"set": {"self.inner": "inner"}}]}
    get = {"do": [{"return": "self.inner"}]}
    methods = {"__init__": init, "get": get}
    classes = {"Open": {"methods": methods}, "Slots": {"slots": ["inner"], "methods": methods}}
    wrap = {"parameters": ["inner"], "do": [{"define": "get", "do": [{"return": "inner"}]}, {"return": "get"}]}
    links = [
        {"bind": {"x": {"call": "wrap", "with": ["x"]}}},
        {"bind": {"y": {"new": "Open", "with": ["y"]}}},
        {"bind": {"y": "y.get"}},
        {"bind": {"z": {"new": "Slots", "with": ["z"]}}},
        {"choose": 0.2, "do": [{"bind": {"x": {"list": ["x"]}, "y": {"tuple": ["y", "y"]}, "z": "z.get"}}]},
    ]
    build = {"do": [{"bind": {"x": 0, "y": 0, "z": 0}}, {"repeat": 200, "as": "i", "do": links}]}
    main = [{"call": "build"}, *build["do"], {"drop": ["y"]}, {"call": "build"}]
    program = object_program({"classes": classes, "functions": {"wrap": wrap, "build": build}, "main": main})
    assert verify_objects(program, INTERPRETERS[version]).difference == ""
