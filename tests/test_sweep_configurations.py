"""Points as stacks: the default, skipped points with reasons, and points that are refused at once."""

import pytest

from replay.config import default_preset
from replay.support.errors import ConfigError
from replay.sweeps.configurations import Configuration, Resolver, Skipped, configurations
from replay.sweeps.plan import make_plan
from replay.trace import Metadata, Provenance, Runtime


def tried(strict=False, **plan):
    return configurations(Resolver(make_plan(plan)), strict=strict)


def test_a_default_outside_the_grid_is_first():
    default, *others = tried(vary={"allocator": ["cpython-3.8"], "pymalloc.alignment": [8, 32]})
    assert (default.is_default, default.stack.pymalloc.alignment) == (True, 16)
    assert default.parameters == {"allocator": "cpython-3.8", "pymalloc.alignment": "default"}
    assert [each.stack.pymalloc.alignment for each in others] == [8, 32]
    assert not any(each.is_default for each in others)


def test_parameters_are_in_the_order_of_the_sweep_with_the_allocator_first():
    names = [
        "pymalloc.small_threshold",
        "glibc.top_pad",
        "MALLOC_ARENA_MAX",
        "pymalloc.alignment",
        "glibc.tcache_count",
    ]
    default, first = tried(vary={**{name: [32] for name in names}, "allocator": ["cpython-3.8"]})
    assert list(default.parameters) == list(first.parameters) == ["allocator", *names]


def test_a_point_that_is_the_default_is_marked_and_not_run_twice():
    eight, sixteen = tried(vary={"allocator": ["cpython-3.8"], "pymalloc.alignment": [8, 16]})
    assert (eight.is_default, sixteen.is_default) == (False, True)


def test_the_default_is_the_running_python_if_it_is_among_the_allocators():
    found = tried(vary={"allocator": ["cpython-3.6", default_preset()]})
    assert [each.is_default for each in found] == [False, True]
    found = tried(vary={"allocator": ["cpython-2.7", "cpython-3.6"]})
    assert [each.is_default for each in found] == [True, False]


def test_fixed_values_are_set_in_the_default_too():
    default, _ = tried(fixed={"glibc.top_pad": 0}, vary={"pymalloc.alignment": [8]})
    assert default.stack.libc.top_pad == 0


def test_patterns_name_the_presets_that_match_older_versions_first():
    found = tried(vary={"allocator": ["cpython-3.1[0-2]", "cpython-3.9"]})
    assert [each.stack.name for each in found] == ["cpython-3.10", "cpython-3.11", "cpython-3.12", "cpython-3.9"]


def test_variables_set_glibc_and_default_leaves_them_alone():
    alone, two = tried(fixed={"allocator": "cpython-3.12"}, vary={"MALLOC_ARENA_MAX": ["default", 2]})
    assert alone.is_default
    assert (alone.stack.libc.arena_max, two.stack.libc.arena_max) == (0, 2) or alone.stack.libc.arena_max == "auto"


def test_an_impossible_combination_is_set_aside_with_its_reason():
    found = tried(vary={"allocator": ["cpython-3.12"], "pymalloc.alignment": [8, 3]})
    assert isinstance(found[1], Configuration)
    assert found[2] == Skipped(
        {"allocator": "cpython-3.12", "pymalloc.alignment": 3}, "alignment: 3 is not a power of two of at least 8"
    )


def test_strict_refuses_an_impossible_combination():
    with pytest.raises(ConfigError) as refusal:
        tried(strict=True, fixed={"allocator": "cpython-3.12"}, vary={"pymalloc.alignment": [8, 3]})
    assert str(refusal.value) == "pymalloc.alignment=3 cannot be run: alignment: 3 is not a power of two of at least 8"


def test_a_sweep_of_impossible_combinations_only_is_refused():
    with pytest.raises(ConfigError, match=r"no combination can be run; the first, pymalloc\.alignment=3: "):
        tried(vary={"pymalloc.alignment": [3, 5]})


def test_a_combination_against_a_constraint_says_which():
    found = tried(
        vary={"allocator": ["cpython-3.12"], "pymalloc.small_threshold": [512, 2048, 1024]},
        constraints=["pymalloc.small_threshold <= pymalloc.pool_size / 16"],
    )
    assert [each.reason for each in found if isinstance(each, Skipped)] == [
        "violates the constraint pymalloc.small_threshold <= pymalloc.pool_size / 16"
    ]
    assert [each.parameters["pymalloc.small_threshold"] for each in found] == [512, 2048, 1024]


def test_additional_points_are_after_the_grid_or_alone():
    spelled = [{"allocator": "cpython-3.8"}, {"allocator": "cpython-3.9", "pymalloc.alignment": 8}]
    found = tried(configurations=spelled)
    assert [each.stack.name for each in found][-2:] == ["cpython-3.8", "cpython-3.9"]
    found = tried(vary={"pymalloc.alignment": [8]}, configurations=spelled)
    assert [each.stack.pymalloc.alignment for each in found[-3:]] == [8, 16, 8]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ({"vary": {"pymalloc.alignement": [8]}}, "no allocator has this key; did you mean 'pymalloc.alignment'?"),
        ({"fixed": {"libc.toppad": 8}}, "no allocator has this key; did you mean 'glibc.top_pad'?"),
        ({"configurations": [{"alocator": "x"}]}, "no allocator has this key; did you mean 'allocator'?"),
        ({"vary": {"MALLOC_ARENA_MX": [1]}}, "did you mean 'MALLOC_ARENA_MAX'?"),
        ({"vary": {"PYTHONMALLOC": ["malloc"]}}, "PYTHONMALLOC chooses an allocator; use -a cpython-3.12-malloc"),
        ({"vary": {"allocator": ["cpython-3.31"]}}, "did you mean 'cpython-3.1"),
        ({"vary": {"allocator": ["cpythn-*"]}}, "no preset matches 'cpythn-*'"),
        ({"vary": {"allocator": [3.12]}}, "allocator: write a list of presets or files"),
        ({"fixed": {"allocator": 3.12}}, "allocator: 3.12 is not the name of a preset or file"),
        (
            {"fixed": {"glibc.top_pad": 0}, "vary": {"glibc.top_pad": [0]}},
            "glibc.top_pad: is both in fixed and in vary",
        ),
        ({"objectives": ["resident_bytes_peek"]}, "did you mean 'resident_bytes_peak'?"),
        ({"objectives": []}, "objectives: "),
        ({"seeds": [1, 1]}, "seeds: 1 occurs twice"),
    ],
)
def test_parameters_that_no_combination_can_have_are_refused_before_any_run(plan, expected):
    with pytest.raises(ConfigError) as refusal:
        tried(**plan)
    assert expected in str(refusal.value)


def test_points_with_variables_of_glibc_are_skipped_without_glibc():
    found = tried(vary={"allocator": ["cpython-3.12", "bump"], "MALLOC_ARENA_MAX": [1]})
    assert found[-1].reason == "bump does not use glibc, so the variable has no effect"


def test_keys_of_a_model_that_the_sweep_itself_chooses_are_known():
    found = tried(fixed={"domains.libc": "bump", "allocator": "cpython-3.12-malloc"}, vary={"bump.top_pad": [4096]})
    assert found[-1].stack.libc_model == "bump"


def test_stacks_that_give_the_same_results_are_the_same_to_the_journal_whatever_their_names(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: cpython-3.12\nname: mine\ndescription: no other.\n")
    preset, mine, other = tried(
        configurations=[
            {"allocator": "cpython-3.12"},
            {"allocator": str(tmp_path / "mine.yaml")},
            {"allocator": "cpython-3.12", "pymalloc.alignment": 8},
        ],
        fixed={"allocator": "cpython-3.12"},
    )
    assert preset.key == mine.key != other.key


def test_an_interval_of_malloc_trim_is_a_parameter():
    found = tried(fixed={"allocator": "cpython-3.12"}, vary={"trim_every": ["default", "10 s", "2ms"]})
    assert [each.trim_every_ns for each in found] == [None, 10_000_000_000, 2_000_000]
    assert [each.is_default for each in found] == [True, False, False]
    assert len({each.key for each in found}) == 3
    found = tried(fixed={"allocator": "cpython-3.12"}, vary={"trim_every": ["default", "1 s"]}, trim_every="1 s")
    assert [each.trim_every_ns for each in found] == [1_000_000_000] * 2


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"trim_every": ["1 s", "10"]}, "trim_every: 10: missing unit"),
        ({"trim_every": ["0"]}, "trim_every: must be longer than 0"),
        ({"trim_every": {"from": 1, "to": 5}}, "trim_every: write a list of times"),
        ({"trim_evry": ["1 s"]}, "did you mean 'trim_every'?"),
    ],
)
def test_a_wrong_interval_is_refused(vary, message):
    with pytest.raises(ConfigError) as error:
        tried(vary=vary)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("runtime", "preset"),
    [
        (Runtime(), "cpython-3.12-malloc"),
        (Runtime(allocator="malloc"), "cpython-3.12-malloc"),
        (Runtime(libc="glibc 2.41"), "cpython-3.12-malloc-glibc-2.41"),
    ],
)
def test_the_default_without_pymalloc_is_that_of_the_recording(runtime, preset):
    recording = Metadata(Provenance(interpreter="cpython 3.12.1"), runtime=runtime)
    resolver = Resolver(make_plan({"vary": {"allocator": ["default", "default-malloc"]}}), [recording])
    default, without = configurations(resolver)
    assert default.is_default
    assert (without.stack.name, without.stack.small_model) == (preset, None)
