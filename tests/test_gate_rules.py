"""Tolerances and limits: their syntax, and the values that they accept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.gates.baselines import Figure
from replay.gates.judging import judge
from replay.gates.tolerances import DEFAULTS, Limit, Tolerance, parse_rule, parse_rules, with_defaults
from replay.support.errors import ConfigError, ReplayError


def figure(value, low=None, high=None):
    return Figure(value=value, low=value if low is None else low, high=value if high is None else high)


def verdict(rule, before, now):
    """The status of one metric judged by one rule."""
    parsed = parse_rule(rule)
    finding = judge({parsed.metric: now}, None if before is None else {parsed.metric: before}, [parsed])
    return finding[0].status


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("resident_bytes_peak:2%", Tolerance("resident_bytes_peak", share=0.02)),
        ("resident_bytes_peak:+64KiB", Tolerance("resident_bytes_peak", amount=65536)),
        ("resident_bytes_peak : 1.5 MiB", Tolerance("resident_bytes_peak", amount=1572864)),
        ("arenas_live:+0", Tolerance("arenas_live")),
        ("syscalls.mmap:10", Tolerance("syscalls.mmap", amount=10)),
        ("simulated_ns:+2ms", Tolerance("simulated_ns", amount=2_000_000)),
        ("resident_bytes_peak<=64MiB", Limit("resident_bytes_peak", "<=", 67108864)),
        ("blowup < 1.4", Limit("blowup", "<", 1.4)),
        ("arenas_live≤3", Limit("arenas_live", "<=", 3)),
        ("arenas_unmapped>=1", Limit("arenas_unmapped", ">=", 1)),
    ],
)
def test_a_rule_is_read_with_the_units_of_its_metric(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resident_bytes_peak", "is not a rule; write it like"),
        ("resident_bytes_peak:", "is not a rule"),
        ("resident_bytes_peak:-5", "'-5' is not a size"),
        ("arenas_live:few", "'few' is not a number"),
        ("arenas_live:-1%", "'-1' is not a number of at least 0"),
        ("arenas_live:inf", "'inf' is not a number"),
        ("resident_byte_peak:2%", "did you mean 'resident_bytes_peak'?"),
        ("blowup<=nan", "'nan' is not a number"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_with_the_reason(text, message):
    with pytest.raises(ReplayError, match=r".") as refused:
        parse_rule(text)
    assert message in str(refused.value)


def test_two_tolerances_of_one_metric_are_refused():
    with pytest.raises(ConfigError, match="syscalls: has two tolerances; keep one"):
        parse_rules(["syscalls:+1", "syscalls:2%"])


def test_later_layers_count_before_earlier_ones_and_limits_add_up():
    layers = [parse_rules(["syscalls:+1", "blowup<=2"]), parse_rules(["syscalls:+5", "blowup<=1.5", "blowup>=1"])]
    assert with_defaults(*layers) == [
        Tolerance("syscalls", amount=5),
        Limit("blowup", "<=", 1.5),
        Limit("blowup", ">=", 1),
    ]


def test_defaults_apply_without_rules_but_not_with_limits_only():
    assert with_defaults([]) == list(DEFAULTS)
    assert with_defaults(parse_rules(["blowup<=2"])) == [Limit("blowup", "<=", 2)]


@pytest.mark.parametrize(
    ("rule", "before", "now", "status"),
    [
        ("arenas_live:+0", 3, 3, "same"),
        ("arenas_live:+0", 3, 4, "worse"),
        ("arenas_live:+1", 3, 4, "within"),
        ("arenas_live:+1", 3, 5, "worse"),
        ("arenas_live:+1", 3, 2, "better"),
        ("resident_bytes_peak:2%", 1000, 1020, "within"),
        ("resident_bytes_peak:2%", 1000, 1021, "worse"),
        ("arenas_unmapped:+0", 3, 2, "changed"),
        ("arenas_unmapped:+1", 3, 2, "within"),
        ("arenas_unmapped:+0", 3, 3, "same"),
    ],
)
def test_exact_figures_are_judged_exactly(rule, before, now, status):
    assert verdict(rule, figure(before), figure(now)) == status


def test_the_spread_of_recordings_is_allowed_in_addition_to_the_tolerance():
    before = figure(100, 98, 103)
    assert verdict("page_faults:+2", before, figure(107)) == "within"
    assert verdict("page_faults:+2", before, figure(108)) == "worse"
    assert verdict("page_faults:+2", figure(100), figure(108, 105, 111)) == "within"
    assert verdict("page_faults:+2", before, figure(95)) == "within"
    assert verdict("page_faults:+2", before, figure(94)) == "better"


def test_a_limit_needs_no_baseline_and_includes_its_value():
    assert verdict("blowup<=1.4", None, figure(1.4)) == "within"
    assert verdict("blowup<1.4", None, figure(1.4)) == "over"
    assert verdict("arenas_unmapped>=2", None, figure(1)) == "over"


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.integers(0, 10**6))
def test_a_tolerance_passes_exactly_what_it_says(before, now, amount):
    status = verdict(f"page_faults:+{amount}", figure(before), figure(now))
    assert (status == "worse") == (now > before + amount)
    assert (status == "better") == (now < before)
