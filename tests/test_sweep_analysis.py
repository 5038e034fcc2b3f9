"""The analysis of rows, compared with figures computed by hand."""

import io
import math
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from replay.reports.charts import draw
from replay.reports.sweeps import print_sweep
from replay.support.units import parse_percentage
from replay.sweeps.analysis import by_size, half_width, main_effects, pareto, per_source, ranking, ratio, undominated
from replay.sweeps.results import Results
from replay.sweeps.ties import ties
from replay.sweeps.verdict import judge, parameter_effects

SCHEMA = {
    "configuration": pl.Int64, "default": pl.Boolean, "source": pl.String, "seed": pl.Int64, "status": pl.String,
    "a": pl.Int64, "b": pl.String, "syscalls": pl.Int64, "blowup": pl.Float64,
}  # fmt: skip


def results(*rows, parameters=("a", "b")):
    """Rows of: configuration, default, source, seed, status, a, b, syscalls, blowup."""
    return Results(pl.DataFrame(list(rows), schema=SCHEMA, orient="row"), parameters, ("syscalls",))


def grid(*figures, source="t", first=0):
    """A full grid of a in 1, 2 and b in x, y; the default is the first."""
    points = [(a, b) for a in (1, 2) for b in "xy"]
    return [
        (first + number, number == 0, source, None, "done", a, b, figure, figure / 10)
        for number, ((a, b), figure) in enumerate(zip(points, figures, strict=True))
    ]


def test_the_ranking_is_by_the_metric_with_the_ratio_to_the_default():
    ranked = ranking(results(*grid(10, 30, 5, 10)), "syscalls")
    assert ranked.select("configuration", "mean", "interval", "ratio", "default", "a", "b").rows() == [
        (2, 5.0, None, 0.5, False, 2, "x"),
        (0, 10.0, None, 1.0, True, 1, "x"),
        (3, 10.0, None, 1.0, False, 2, "y"),
        (1, 30.0, None, 3.0, False, 1, "y"),
    ]


def test_over_several_traces_it_is_by_the_mean_of_the_ratios_to_the_default():
    ranked = ranking(results(*grid(10, 20, 5, 10), *grid(1000, 500, 2000, 1000, source="u")), "syscalls")
    assert ranked.select("configuration", "mean", "ratio").rows() == [
        (0, None, 1.0),
        (3, None, 1.0),
        (1, None, 1.25),  # twice and half
        (2, None, 1.25),
    ]


def test_with_a_default_of_zero_the_ratio_is_based_on_the_value_itself():
    assert (ratio(0, 0), ratio(3, 0), ratio(3, 2)) == (1.0, 4.0, 1.5)


def seeded(*figures):
    return [
        (configuration, configuration == 0, "t", seed, "done", configuration, "x", figure, 1.0)
        for configuration, of_seeds in enumerate(figures)
        for seed, figure in enumerate(of_seeds)
    ]


def test_over_seeds_it_is_the_mean_and_the_interval_by_student():
    ranked = ranking(results(*seeded((10, 12, 14), (9, 9, 9))), "syscalls")
    assert ranked["mean"].to_list() == [9.0, 12.0]
    # Two degrees of freedom: 4.303 times the standard deviation, 2, by the root of 3.
    assert ranked["interval"].to_list() == [0.0, pytest.approx(4.303 * 2 / math.sqrt(3), rel=1e-12)]
    assert ranked["ratio"].to_list() == [0.75, 1.0]


def test_the_interval_of_two_and_of_many_values():
    assert half_width([1.0]) is None
    assert half_width([1.0, 3.0]) == pytest.approx(12.706, rel=1e-12)
    assert half_width([0.0, 1.0] * 20) == pytest.approx(1.960 * math.sqrt(10 / 39 / 40), rel=1e-12)


def test_a_configuration_that_failed_with_a_seed_is_not_ranked_by_the_others():
    rows = seeded((10, 12), (1, 1))
    rows[3] = (*rows[3][:4], "failed", *rows[3][5:7], None, None)
    assert ranking(results(*rows), "syscalls")["configuration"].to_list() == [0]
    assert per_source(results(*rows), "syscalls").rows() == [(0, "t", True, 11.0, pytest.approx(12.706), 2, 1.0)]


def test_a_trace_that_fails_with_all_configurations_is_not_compared():
    broken = [(*row[:4], "failed", *row[5:7], None, None) for row in grid(0, 0, 0, 0, source="broken")]
    assert ranking(results(*grid(10, 30, 5, 10), *broken), "syscalls")["ratio"].to_list() == [0.5, 1.0, 1.0, 3.0]


def test_a_failed_default_leaves_figures_without_ratios():
    rows = grid(10, 30, 5, 10)
    rows[0] = (*rows[0][:4], "failed", *rows[0][5:7], None, None)
    ranked = ranking(results(*rows), "syscalls")
    assert ranked.select("configuration", "mean", "ratio").rows() == [(2, 5.0, None), (3, 10.0, None), (1, 30.0, None)]


def test_main_effects_are_means_over_everything_else_and_shares_of_the_variance():
    effects = main_effects(results(*grid(10, 14, 20, 24)), "syscalls")
    # Means 12 and 22 by a, 15 and 19 by b, 17 in all: 4·25 of 116, and 4·4.
    assert effects.rows() == [
        ("a", "1", 12.0, 2, pytest.approx(100 / 116)),
        ("a", "2", 22.0, 2, pytest.approx(100 / 116)),
        ("b", "x", 15.0, 2, pytest.approx(16 / 116)),
        ("b", "y", 19.0, 2, pytest.approx(16 / 116)),
    ]


def test_a_parameter_that_changes_nothing_explains_nothing():
    assert main_effects(results(*grid(10, 10, 10, 10)), "syscalls")["share"].to_list() == [0.0] * 4


def test_a_default_outside_the_grid_is_not_a_value_of_its_parameters():
    rows = [(number + 1, False, *row[2:]) for number, row in enumerate(grid(10, 14, 20, 24))]
    effects = main_effects(results((0, True, "t", None, "done", 7, None, 999, 1.0), *rows), "syscalls")
    assert effects["value"].to_list() == ["1", "2", "x", "y"]
    assert effects["mean"].to_list() == [12.0, 22.0, 15.0, 19.0]


def test_of_a_single_parameter_the_default_beside_it_is_one_more_value():
    rows = [(a, a == 2, "t", None, "done", a, "x", 10 * a, 1.0) for a in (1, 2, 3)]
    assert main_effects(results(*rows), "syscalls")["mean"].to_list() == [10.0, 20.0, 30.0]


def test_a_parameter_of_many_numbers_is_judged_by_quarters():
    rows = [(n, n == 0, "t", None, "done", n, "x", 1 if n < 6 else 2, 1.0) for n in range(12)]
    effects = main_effects(results(*rows), "syscalls")
    assert effects.select("value", "mean", "configurations").rows() == [
        ("0 to 3", 1.0, 4), ("3 to 6", pytest.approx(4 / 3), 3), ("6 to 8", 2.0, 2), ("8 to 11", 2.0, 3),
    ]  # fmt: skip


def test_values_are_in_the_order_of_their_size_and_versions_in_theirs():
    mixed = ["dynamic", "1048576", None, "65536", 7, "cpython-3.12", "cpython-3.8"]
    assert sorted(mixed, key=by_size) == [None, 7, "65536", "1048576", "cpython-3.8", "cpython-3.12", "dynamic"]


def test_the_pareto_front_has_the_undominated_configurations():
    points = [(1, 9), (3, 3), (2, 8), (3, 4), (9, 1), (2, 9), (3, 3)]
    rows = [(n, n == 0, "t", None, "done", n, "x", *point) for n, point in enumerate(points)]
    front = pareto(results(*rows), ["syscalls", "blowup"])
    assert front.select("configuration", "syscalls", "blowup").rows() == [
        (0, 1.0, 9.0), (2, 2.0, 8.0), (1, 3.0, 3.0), (6, 3.0, 3.0), (4, 9.0, 1.0),
    ]  # fmt: skip


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=40))
def test_the_front_is_the_same_as_by_comparing_each_with_each(points):
    def beats(one, other):
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    expected = sorted({point for point in points if not any(beats(other, point) for other in points)})
    assert undominated(points) == expected


def test_nothing_done_is_nothing_ranked():
    rows = [(*row[:4], "missing", *row[5:7], None, None) for row in grid(0, 0, 0, 0)]
    assert ranking(results(*rows), "syscalls").height == 0
    assert main_effects(results(*rows), "syscalls").height == 0


def matters(*figures, within=0.01):
    verdict = judge(results(*grid(*figures)), ["syscalls"], within=within)
    return verdict.matters, [(each.lowest, each.highest, each.spread, each.relative_spread) for each in verdict.spreads]


def test_configurations_within_the_limit_do_not_matter_and_the_limit_itself_is_within():
    assert matters(1000, 1004, 1010, 1005) == (False, [(1000.0, 1010.0, 10.0, 0.01)])
    assert matters(1000, 1004, 1011, 1005) == (True, [(1000.0, 1011.0, 11.0, 0.011)])
    assert matters(7, 7, 7, 7, within=0.0) == (False, [(7.0, 7.0, 0.0, 0.0)])


def test_a_difference_to_zero_matters_whatever_the_limit():
    assert matters(0, 1, 0, 0, within=1.0) == (True, [(0.0, 1.0, 1.0, None)])
    assert matters(0, 0, 0, 0) == (False, [(0.0, 0.0, 0.0, 0.0)])


def test_each_trace_has_a_verdict_of_its_own():
    verdict = judge(results(*grid(100, 100, 100, 100), *grid(5, 6, 7, 8, source="u")), ["syscalls", "blowup"])
    assert [(each.metric, each.source, each.matters) for each in verdict.spreads] == [
        ("syscalls", "t", False), ("syscalls", "u", True), ("blowup", "t", False), ("blowup", "u", True),
    ]  # fmt: skip
    assert [each.source for each in verdict.of("blowup")] == ["t", "u"]


def test_a_single_configuration_has_no_verdict():
    verdict = judge(results(grid(1, 2, 3, 4)[0]), ["syscalls"])
    assert (verdict.matters, verdict.spreads) == (False, ())


def test_a_parameter_matters_by_the_difference_of_its_means():
    effects = parameter_effects(results(*grid(1000, 1002, 1100, 1094)), "syscalls")
    # Means 1001 and 1097 by a, 1050 and 1048 by b. With a = 2, b makes a difference of 6 in 1094.
    assert effects.drop("share").rows() == [
        ("a", 96.0, 96 / 1001, 0.1, True),
        ("b", 2.0, 2 / 1048, 6 / 1094, False),
    ]


def test_without_configurations_that_differ_in_one_parameter_only_the_largest_effect_is_that_of_the_means():
    rows = [(n, False, "t", None, "done", n, "xyz"[n], 10 + n, 1.0) for n in range(3)]
    effects = parameter_effects(results(*rows), "syscalls")
    assert effects.select("relative_effect", "relative_effect_max").rows() == [(0.2, 0.2), (0.2, 0.2)]


def shown(found):
    return [(tie.rank, len(tie.rows), tie.configuration, tie.values(["a", "b"])) for tie in found]


def test_equal_configurations_are_one_tie_with_the_values_of_all():
    figures = results(*grid(10, 10, 5, 10))
    assert shown(ties(results(*grid(10, 10, 5, 5)), ["syscalls"])) == [
        (1, 2, 2, [[2], ["x", "y"]]), (3, 2, 0, [[1], ["x", "y"]]),
    ]  # fmt: skip
    assert shown(ties(figures, ["syscalls"])) == [(1, 1, 2, [[2], ["x"]]), (2, 3, 0, [[1], ["x"]])]
    assert [tie.rank for tie in ties(figures, ["syscalls"], merged=False)] == [1, 2, 3, 4]


def test_configurations_that_are_equal_in_one_metric_only_are_ordered_by_the_next():
    rows = [(n, n == 0, "t", None, "done", n, "x", 10, blowup) for n, blowup in enumerate((3.0, 1.0, 2.0, 1.0))]
    assert shown(ties(results(*rows), ["syscalls", "blowup"])) == [
        (1, 2, 1, [[1, 3], ["x"]]), (3, 1, 2, [[2], ["x"]]), (4, 1, 0, [[0], ["x"]]),
    ]  # fmt: skip


@given(st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_a_tie_shows_values_of_which_all_combinations_are_equal(figures):
    found = ties(results(*grid(*figures)), ["syscalls"])
    assert sorted(row["configuration"] for tie in found for row in tie.rows) == [0, 1, 2, 3]
    for tie in found:
        a, b = tie.values(["a", "b"])
        points = {(row["a"], row["b"]) for row in tie.rows}
        assert {(x, y) for x in a for y in b} <= points
        assert (a[0], b[0]) == (tie.rows[0]["a"], tie.rows[0]["b"])


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), (" 0.5 % ", 0.005), ("0%", 0.0), ("100%", 1.0)])
def test_a_percentage_is_a_share(text, share):
    assert parse_percentage(text) == share


@pytest.mark.parametrize("text", ["1", "0.01", "%", "-1%", "101%", "1%%", "1e999%", "1 KiB%", "nan%"])
def test_an_invalid_percentage_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a percentage of at most 100%; write it like 1%"):
        parse_percentage(text)


def test_without_results_of_the_default_several_traces_are_reported_without_effects_and_charts():
    rows = [row for source in "tu" for row in grid(1, 2, 3, 4, source=source)]
    broken = results(*((*row[:4], "failed", *row[5:7], None, None) if row[1] else row for row in rows))
    broken = replace(broken, frame=broken.frame.with_columns(error=pl.lit("too large")))
    console = Console(width=160, file=io.StringIO())
    print_sweep(console, broken, ["syscalls", "blowup"])
    text = console.file.getvalue()
    assert "Spread between the configurations" in text
    assert "Effect of each parameter" not in text
    pytest.importorskip("altair")
    assert draw(broken, ["syscalls", "blowup"]) == {}
    assert draw(broken, ["syscalls"], heat=["a", "b"]) == {}
