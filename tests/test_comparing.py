"""`replay compare`: metrics side by side, and effects that add up to the differences."""

import json
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import pytest
from histories import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collector_settings import PAIRS, history

from replay.analysis.comparison import ATTRIBUTED, Case, Factor, _shapley, compare
from replay.config import load_config
from replay.simulation.run import run
from replay.sources.parquet import write_trace
from replay.trace import MemoryTrace, Metadata, Op, Provenance
from replay.trace.editing.collecting import CollectedTrace, CollectorSettings

PAGE = (Path(__file__).parents[1] / "docs" / "comparing.md").read_text(encoding="utf-8")
TRACE, OTHER = (seeded(seed, 2000).trace() for seed in (1, 2))


def cases(*stacks: str, traces: tuple[MemoryTrace, ...] = (TRACE,), settings: tuple[str, ...] = ()) -> list[Case]:
    return [
        Case(stack, f"trace {index}", trace, load_config(stack.split()[0], [*stack.split()[1:], *settings]))
        for index, trace in enumerate(traces)
        for stack in stacks
    ]


@pytest.mark.parametrize(
    ("first", "other", "factors"),
    [
        ("cpython-3.12", "cpython-3.12-glibc-2.41", {"glibc.version"}),
        ("cpython-3.9", "cpython-3.12", {"pymalloc.arena_size", "pymalloc.pool_size", "pymalloc.radix_tree"}),
        ("cpython-3.12", "cpython-3.12-malloc", {"models"}),
        ("cpython-3.12", "ideal", {"models"}),
        ("cpython-3.12", "cpython-3.12 domains.mem=glibc", {"domains"}),
    ],
)
def test_effects_of_what_differs_add_up_to_the_difference(first, other, factors):
    comparison = compare(cases(first, other))
    effects = comparison.attributions[0].effects
    assert {effect.factor for effect in effects["resident_bytes_peak"]} == factors
    for metric in ATTRIBUTED:
        before, after = (getattr(case.summary, metric) for case in comparison.cases)
        assert sum(effect.amount for effect in effects[metric]) == after - before
    assert comparison.attributions[0].runs == 2 ** len(factors) - 2


def test_a_domain_has_the_models_before_and_after():
    comparison = compare(cases("cpython-3.12", "cpython-3.12 domains.mem=glibc domains.raw=pymalloc"))
    assert [effect[:3] for effect in comparison.attributions[0].effects["resident_bytes_peak"]] == [
        ("domains", "raw glibc, mem pymalloc", "raw pymalloc, mem glibc")
    ]


def test_settings_of_the_collector_are_factors():
    recorded = history([(op, block, 60_000 if op == Op.MALLOC else size) for op, block, size in PAIRS])
    changed = CollectorSettings(threshold0=5, enabled=False)
    first = Case("", "", recorded, load_config("cpython-3.11"))
    other = Case("", "", recorded, load_config("cpython-3.11-malloc"), (), changed)
    comparison = compare([first, other])
    effects = comparison.attributions[0].effects
    assert {effect.factor for effect in effects["resident_bytes_peak"]} == {"models", "gc.threshold0", "gc.enabled"}
    for metric in ATTRIBUTED:
        before, after = (getattr(case.summary, metric) for case in comparison.cases)
        assert sum(effect.amount for effect in effects[metric]) == after - before
    enabled = next(effect for effect in effects["resident_bytes_end"] if effect.factor == "gc.enabled")
    assert (enabled.before, enabled.after, enabled.amount > 100_000) == ("default", "false", True)
    alone = run(CollectedTrace(recorded, changed, ""), other.stack)
    assert comparison.cases[1].summary.resident_bytes_peak == int(alone.end.resident_bytes_peak)


def test_two_traces_with_their_own_stacks_differ_by_requests_and_by_settings():
    first, other = cases("cpython-3.12")[0], cases("cpython-3.12-glibc-2.31", traces=(OTHER,))[0]
    comparison = compare([first, other])
    effects = {each.factor: each.amount for each in comparison.attributions[0].effects["resident_bytes_peak"]}
    stacks = [load_config(stack) for stack in ("cpython-3.12", "cpython-3.12-glibc-2.31")]
    peak = [[run(trace, stack).end.resident_bytes_peak for stack in stacks] for trace in (TRACE, OTHER)]
    alone, last = (int(peak[1][stack] - peak[0][stack]) for stack in (0, 1))
    assert effects["requests of the program"] == pytest.approx((alone + last) / 2, abs=1)


def test_many_settings_are_one_factor_for_each_model():
    other = load_config("cpython-3.8", ["glibc.version=2.31", "glibc.arena_max=1"])
    comparison = compare([*cases("cpython-3.12"), Case("other", "trace 0", TRACE, other)])
    names = {effect.factor for effect in comparison.attributions[0].effects["resident_bytes_peak"]}
    assert names == {"settings of glibc", "settings of pymalloc"}


def test_equal_runs_have_no_effects():
    comparison = compare(cases("cpython-3.12", "cpython-3.12"))
    assert comparison.attributions[0].effects == {metric: [] for metric in ATTRIBUTED}


@given(st.lists(st.integers(-(10**12), 10**12), min_size=8, max_size=8))
@settings(deadline=None)
def test_an_effect_is_its_mean_over_all_orders(values):
    factors = [Factor(name, "", "", frozenset()) for name in "abc"]
    sets = [frozenset(each for bit, each in enumerate(factors) if number >> bit & 1) for number in range(8)]
    value = dict(zip(sets, values, strict=True))
    effects = {effect.factor: effect.amount for effect in _shapley(factors, value)}
    assert sum(effects.values()) == values[7] - values[0]
    orders = [*permutations(factors)]
    for factor in factors:
        steps = [value[frozenset(each[: each.index(factor) + 1])] - value[frozenset(each[: each.index(factor)])]
                 for each in orders]  # fmt: skip
        assert abs(effects[factor.name] - Fraction(sum(steps), len(orders))) <= 2


# The command


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    path = tmp_path / "app.parquet"
    write_trace(TRACE, path)
    return path


def test_json_has_the_documented_keys(replay, traced):
    found = json.loads(replay("compare", traced, "-a", "cpython-3.9,cpython-3.12", "--json")[1])
    effect = found["attributions"][0]["effects"]["resident_bytes_end"][0]
    keys = [*found, *found["cases"][0], *found["cases"][0]["timeline"], *found["attributions"][0], *effect]
    assert [key for key in keys if f"`{key}`" not in PAGE] == []
    peaks = [case["metrics"]["resident_bytes_peak"] for case in found["cases"]]
    assert found["cases"][1]["differences"]["resident_bytes_peak"] == peaks[1] - peaks[0]
    assert max(found["cases"][0]["timeline"]["resident_bytes"]) <= peaks[0]


def test_every_combination_of_values_is_a_run(replay, traced):
    text = replay("compare", traced, "-a", "cpython-3.12", "--env", "MALLOC_ARENA_MAX=default,1",
                  "--grid", "pymalloc.alignment=8,16", "--no-attribution")[1]  # fmt: skip
    assert [line[0] for line in text.splitlines()[:4]] == [*"ABCD"]
    assert "Where the differences" not in text
    options = "-a cpython-3.12 --set pymalloc.alignment=16 --env MALLOC_ARENA_MAX=1"
    assert text.rstrip().splitlines()[-1] == f"next: replay run {traced} {options}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare with"),
        (["-a", "cpython-3.12,nothing"], "nothing"),
        (["-a", "cpython-3.12", "--grid", "pymalloc.alignment=16,7"], "pymalloc.alignment=7"),
        (
            ["--grid", "glibc.top_pad=" + ",".join(str(number << 12) for number in range(1, 28))],
            "use `replay sweep`",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(refused, traced, arguments, message):
    assert message in refused("compare", traced, *arguments)


def test_settings_of_the_collector_are_compared_and_have_a_note(replay, tmp_path):
    path = tmp_path / "app.parquet"
    write_trace(history(PAIRS), path)
    code, text, notes = replay("compare", path, "--grid", "gc.threshold0=default,5", "--set", "gc.threshold1=5")
    assert code == 0
    assert text.splitlines()[0] == f"A  {path} cpython-3.11 gc.threshold1=5 gc.threshold0=default"
    assert "garbage collector with thresholds 2, 5, 10" in notes
    assert "garbage collector with thresholds 5, 5, 10" in notes
    options = "-a cpython-3.11 --set gc.threshold1=5 --set gc.threshold0=5"
    assert text.rstrip().splitlines()[-1] == f"next: replay run {path} {options}"


def test_a_sweep_names_the_commands_that_take_settings_of_the_collector(refused, traced):
    for option in ("--set", "--grid"):
        message = refused("sweep", traced, "-a", "cpython-3.12", option, "gc.threshold0=5")
        assert "`replay compare` SOURCE --grid gc.threshold0=…" in message


def test_another_release_than_the_recorded_one_has_a_note(replay, tmp_path):
    path = tmp_path / "app.parquet"
    write_trace(MemoryTrace(TRACE.events, Metadata(Provenance(interpreter="cpython 3.11.7"))), path)
    _, _, notes = replay("compare", path, "-a", "cpython-3.11,cpython-3.12", "--no-attribution")
    assert f"note: {path} was recorded with CPython 3.11; its requests are those of that version" in notes


def test_labels_have_the_settings_of_all_runs(replay, traced):
    settings = ("--set", "pymalloc.radix_tree=false")
    text = replay("compare", traced, "-a", "cpython-3.9,cpython-3.12", *settings, "--no-attribution")[1]
    assert text.splitlines()[:2] == [
        f"A  {traced} cpython-3.9 pymalloc.radix_tree=false",
        f"B  {traced} cpython-3.12 pymalloc.radix_tree=false",
    ]


def test_runs_without_a_difference_are_said_to_have_none(replay, traced, tmp_path):
    assert "B and A have the same source and the same settings" in replay("compare", traced, traced)[1]
    empty = tmp_path / "empty.parquet"
    write_trace(MemoryTrace([]), empty)
    text = replay("compare", empty, "-a", "cpython-3.12,bump")[1]
    assert "The traces have no events." in text
    assert "B and A have equal resident memory; they differ in: models" in text
