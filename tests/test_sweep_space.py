"""Values of a sweep's parameters, the choice of points, and constraints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.config import load_config
from replay.support.errors import ConfigError
from replay.sweeps.configurations import Resolver
from replay.sweeps.constraints import Constraint, Unanswerable
from replay.sweeps.plan import make_plan
from replay.sweeps.space import Choose, Range, points

KEYS = {
    "pymalloc.alignment", "pymalloc.small_threshold", "pymalloc.pool_size", "pymalloc.radix_tree", "linux.page_size",
    "domains.libc", "bump.top_pad", "glibc.mmap_threshold", "glibc.arena_max", "glibc.top_pad",
}  # fmt: skip


def values_of(written):
    return make_plan({"vary": {"glibc.top_pad": written}}).vary["glibc.top_pad"]


@pytest.mark.parametrize(
    ("written", "levels"),
    [
        ({"from": 64, "to": 512, "step": 64}, [64, 128, 192, 256, 320, 384, 448, 512]),
        ({"from": 1, "to": 6, "step": 2}, [1, 3, 5]),
        ({"from": 0.1, "to": 0.3, "step": 0.1}, [0.1, 0.2, 0.3]),
        ({"from": 1, "to": 2, "step": 0.5}, [1.0, 1.5, 2.0]),
        ({"from": "64 KiB", "to": "1MiB", "factor": 4}, [65536, 262144, 1048576]),
        ({"from": 1, "to": 1000, "factor": 10}, [1, 10, 100, 1000]),
        ({"from": 5, "to": 5, "step": 1}, [5]),
    ],
)
def test_a_range_with_a_step_or_a_factor_has_exact_values(written, levels):
    assert values_of(written).levels() == levels


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (8, "vary.glibc.top_pad: 8 should be a list"),
        ([], "vary.glibc.top_pad: [] "),
        ([[1]], "vary.glibc.top_pad.0: [1] is not a value; write a number, a text, true or false"),
        ([None], "vary.glibc.top_pad.0: is empty; write `default` for the value of the preset"),
        ({"from": 16, "to": 8}, "vary.glibc.top_pad: to: 8 is less than from, 16"),
        ({"from": "few", "to": 8}, "vary.glibc.top_pad.from: 'few' is not a size; write it like 256 KiB"),
        ({"from": 1, "to": float("inf")}, "vary.glibc.top_pad.to: inf should be a finite number"),
        ({"from": 1, "to": 8, "step": 0}, "vary.glibc.top_pad.step: 0 should be greater than 0"),
        ({"from": 1, "to": 8, "factor": 1}, "vary.glibc.top_pad.factor: 1 should be greater than 1"),
        (
            {"from": 0, "to": 8, "factor": 2},
            "from: must be greater than 0 in a range with a factor or a logarithmic scale",
        ),
        ({"from": 1, "to": 8, "factor": 2, "step": 2}, "step: a range has a step or a factor, not both"),
        ({"from": 1, "to": 8, "factor": 1.0000001}, "factor: 1.0000001 makes more than 10,000 values"),
        ({"from": 1, "to": 1e12, "step": 1}, "step: 1 makes more than 10,000 values"),
        ({"from": 1, "to": 8, "step": 1, "scale": "log"}, "scale: not allowed in a range with a step or factor"),
        ({"from": True, "to": 8}, "vary.glibc.top_pad.from: True is not a number"),
        ({"from": 1, "to": 8, "stpe": 1}, "vary.glibc.top_pad.stpe: unknown key"),
    ],
)
def test_values_that_cannot_be_are_refused_in_a_sentence(written, expected):
    with pytest.raises(ConfigError) as refusal:
        values_of(written)
    assert expected in str(refusal.value)


def test_of_a_grid_the_last_parameter_varies_fastest():
    space = {"a": [1, 2], "b": ["x", "y", "x"]}
    assert points(space, Choose()) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]


def test_a_grid_over_a_range_without_a_step_is_refused():
    with pytest.raises(ConfigError, match="a: a grid needs a step or a factor for the range 1 to 8"):
        points({"a": Range.model_validate({"from": 1, "to": 8})}, Choose())


def test_a_grid_of_more_points_than_anybody_waits_for_is_refused():
    with pytest.raises(ConfigError, match="the grid has 1,000,000 points, more than 100,000"):
        points({name: list(range(100)) for name in "abc"}, Choose())


@given(st.integers(1, 30), st.integers(0, 100))
def test_latin_uses_each_part_of_every_parameter_once(runs, seed):
    space = {"a": list(range(runs)), "b": Range.model_validate({"from": 0, "to": 1.0})}
    chosen = points(space, Choose(kind="latin", runs=runs, seed=seed))
    assert sorted(point["a"] for point in chosen) == list(range(runs))
    assert sorted(int(point["b"] * runs) for point in chosen) == list(range(runs))


def test_points_at_random_are_those_of_the_seed():
    space = {"a": Range.model_validate({"from": 1, "to": 1 << 20, "scale": "log"}), "b": ["x", "y"]}
    first = points(space, Choose(kind="random", runs=20, seed=3))
    assert points(space, Choose(kind="random", runs=20, seed=3)) == first
    assert points(space, Choose(kind="random", runs=20, seed=4)) != first
    assert all(isinstance(point["a"], int) and 1 <= point["a"] <= 1 << 20 for point in first)
    assert sum(point["a"] < 1 << 10 for point in first) in range(4, 17)


def test_random_points_are_counted_and_grids_are_not():
    with pytest.raises(ConfigError, match="missing: the number of points"):
        make_plan({"choose": {"kind": "random"}})
    with pytest.raises(ConfigError, match="not allowed with the kind grid"):
        make_plan({"choose": {"runs": 3}})
    with pytest.raises(ConfigError, match="1,000,000,000 exceeds the maximum of 100,000"):
        make_plan({"choose": {"kind": "latin", "runs": 10**9}})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("pymalloc.small_threshold <= pymalloc.pool_size / 8", True),  # 512, 16384
        ("small_threshold ≤ pool_size/8", True),
        ("pool_size % small_threshold == 1", False),
        ("8 <= alignment < 16", False),
        ("8 <= alignment <= 16 and not radix_tree", False),
        ("alignment == 8 or radix_tree", True),
        ("pool_size == '16 KiB'", True),
        ("glibc.mmap_threshold == 'dynamic'", True),
        ("-alignment + 17 // 1 == 1", True),
        ("radix_tree", True),
        ("alignment != 16", False),
    ],
)
def test_a_condition_uses_all_keys_of_the_stack(text, verdict):
    assert Constraint(text, KEYS).holds(load_config("cpython-3.12")) is verdict


@pytest.mark.parametrize("text", ["small_threshold > 9999", "pymalloc.alignment == 3"])
def test_a_condition_about_a_missing_key_holds(text):
    assert Constraint(text, KEYS).holds(load_config("cpython-3.12-malloc"))


def test_a_condition_on_a_key_that_only_another_libc_has_holds():
    assert Constraint("glibc.arena_max == 3", KEYS).holds(load_config("bump"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alignment = 8", "is not a condition"),
        ("", "is not a condition"),
        ("(" * 5000 + "alignment" + ")" * 5000, "is not a condition"),
        ("alignment\0 < 3", "is not a condition"),
        ("alignment + 3", "is not a condition but a number"),
        ("True", "is not a condition but a number"),
        ("__import__('os').system('true')", "is not a condition but a number"),
        ("alignment ** 99 < 3", "contains more than keys, numbers, comparisons and arithmetic"),
        ("alignment < len('x')", "contains more than keys, numbers, comparisons and arithmetic"),
        ("alignment in [8]", "has a comparison other than < <= > >= == !="),
        ("alignement <= 8", "did you mean 'pymalloc.alignment'?"),
        ("top_pad == 0", "names top_pad, which is ambiguous (bump.top_pad, glibc.top_pad)"),
        ("alignment < 8 or alignement < 8", "names alignement, which no stack has"),
    ],
)
def test_an_invalid_condition_is_refused_before_any_run(text, expected):
    with pytest.raises(ConfigError) as refusal:
        Constraint(text, KEYS)
    assert expected in str(refusal.value)


@pytest.mark.parametrize("text", ["glibc.mmap_threshold <= 65536", "alignment / 0 < 1"])
def test_a_condition_that_means_nothing_for_a_stack_sets_it_aside(text):
    with pytest.raises(Unanswerable):
        Constraint(text, KEYS).holds(load_config("cpython-3.12"))
    plan = make_plan(
        {"vary": {"glibc.mmap_threshold": ["dynamic", 4096]}, "constraints": ["glibc.mmap_threshold < 9999"]}
    )
    dynamic, number = (Resolver(plan).resolve(point) for point in points(plan.vary, plan.choose))
    assert dynamic.reason.startswith("glibc.mmap_threshold < 9999 cannot be evaluated: ")
    assert number.stack.libc.mmap_threshold == 4096
