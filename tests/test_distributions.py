import math
from fractions import Fraction
from statistics import NormalDist, fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replay.workload.distribution_schema import (
    BlockSize,
    Choice,
    Exponential,
    Histogram,
    Lognormal,
    Mixture,
    Pareto,
    Span,
    Uniform,
    UntilNext,
)
from replay.workload.generator import distributions
from replay.workload.generator.distributions import (
    NEVER_NS,
    draw,
    exp,
    expected,
    log,
    make_key,
    make_law,
    normal_quantile,
    random_part,
    random_words,
)

CHOICE = Choice[BlockSize](kind="choice", weights={64: 3, 232: 1})
UNIFORM = Uniform[BlockSize](kind="uniform", min=10, max=19)
LOGNORMAL = Lognormal[BlockSize](kind="lognormal", median=1000, sigma=0.5)
EXPONENTIAL = Exponential[Span](kind="exponential", mean="1 us")
PARETO = Pareto[BlockSize](kind="pareto", min=100, alpha=2)
HISTOGRAM = Histogram[BlockSize](kind="histogram", edges=[16, 32, 64], counts=[1, 3])
MIXTURE = Mixture.model_validate(
    {"kind": "mixture", "parts": [{"weight": 1, "of": CHOICE}, {"weight": 3, "of": UNIFORM}]}
)

KEY = (1247818256, 2453791419)
WORDS = [(3066134420, 3883939814), (1499794980, 2717004707), (2210429662, 3018982694)]
FIRST = {
    "choice": [64, 64, 64, 232, 232, 232],
    "uniform": [16, 14, 15, 18, 10, 19],
    "lognormal": [1183, 899, 1104, 1537, 446, 2185],
    "exponential": [459, 877, 548, 217, 2939, 61],
    "pareto": [126, 155, 132, 111, 435, 103],
    "histogram": [52, 22, 50, 57, 33, 62],
    "mixture": [16, 64, 15, 18, 10, 19],
}


def draws(form, count, least=0, most=1 << 47):
    law = make_law(form, 1, "a stream", "size", least=least, most=most)
    return [int(draw(law, counter, 0)) for counter in range(count)]


@given(st.floats(1e-300, 1e300))
def test_log_agrees_with_the_library_to_15_digits(x):
    assert log(x) == pytest.approx(math.log(x), rel=1e-15, abs=1e-15)


@given(st.floats(-690, 690))
def test_exp_agrees_with_the_library_to_15_digits(x):
    assert exp(x) == pytest.approx(math.exp(x), rel=1e-15)


def test_exp_stays_finite():
    assert exp(-1e9) == 0.0
    assert exp(1e9) == pytest.approx(math.exp(700), rel=1e-15)


@given(st.floats(1e-16, 1 - 1e-16))
def test_the_normal_quantile_agrees_with_the_library_to_13_digits(p):
    assert normal_quantile(p) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-13, abs=1e-15)


def test_the_random_words_of_a_key_are_pinned():
    assert make_key(1, "requests", "size") == KEY
    assert [tuple(map(int, random_words(*KEY, counter))) for counter in (0, 1, 1 << 40)] == WORDS


def test_a_flipped_bit_of_the_counter_flips_half_of_the_bits():
    """2,000 counters: the part of flips has a standard deviation of 0.011; no bit of 62 x 64 strays by five."""
    for flipped in (0, 1, 17, 31, 32, 45, 61):
        flips = [0] * 64
        for counter in range(0, 2000 * 7919, 7919):
            one, other = random_words(*KEY, counter), random_words(*KEY, counter ^ (1 << flipped))
            change = (int(one[0] ^ other[0]) << 32) | int(one[1] ^ other[1])
            for bit in range(64):
                flips[bit] += change >> bit & 1
        assert all(abs(count / 2000 - 0.5) < 0.056 for count in flips), flipped


def test_random_parts_fill_the_open_unit_interval_evenly():
    """20,000 parts in 20 cells of 1,000 each: chi-square with 19 degrees of freedom is below 43.8 in 999 of 1,000."""
    cells = [0] * 20
    for counter in range(20_000):
        part = float(random_part(*KEY, counter))
        assert 0 < part < 1
        cells[int(part * 20)] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in cells) < 43.8


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_the_alias_table_gives_every_leaf_its_weight(weights):
    exact = [Fraction(weight) for weight in weights]
    share = [Fraction(0)] * len(weights)
    for i, (threshold, alias) in enumerate(distributions._alias_table(exact)):
        share[i] += Fraction(threshold, 1 << 32)
        share[alias] += 1 - Fraction(threshold, 1 << 32)
    for got, weight in zip(share, exact, strict=True):
        assert abs(got / len(weights) - weight / sum(exact)) <= Fraction(len(weights), 1 << 32)


@pytest.mark.parametrize("name", ["choice", "uniform", "lognormal", "exponential", "pareto", "histogram", "mixture"])
def test_the_first_draws_are_pinned(name):
    assert draws(globals()[name.upper()], 6) == FIRST[name]


def test_a_constant_is_itself():
    assert draws(64, 3) == [64, 64, 64]
    assert draws(0, 1, least=1) == [1]


def test_forever_is_never():
    assert draws("forever", 2, least=1, most=NEVER_NS) == [NEVER_NS, NEVER_NS]


def test_until_next_ends_at_a_multiple_and_never_at_once():
    law = make_law(UntilNext(kind="until-next", every=100), 1, "s", "lifetime", least=1, most=NEVER_NS)
    assert [int(draw(law, 0, now)) for now in (0, 1, 99, 100, 250)] == [100, 99, 1, 100, 50]


def test_a_choice_follows_its_weights():
    """Of 20,000, three quarters with a standard deviation of 61."""
    assert abs(draws(CHOICE, 20_000).count(64) - 15_000) < 245


def test_uniform_reaches_both_ends_equally_often():
    """2,000 of each of ten values, with a standard deviation of 42."""
    values = draws(UNIFORM, 20_000)
    assert all(abs(values.count(value) - 2000) < 170 for value in range(10, 20))
    assert len(set(values)) == 10


def test_lognormal_has_its_median_and_its_spread():
    """The median of 20,000 has a standard error of 1000 * 0.5 * 1.2533 / sqrt(20000) = 4.4; 1 sigma up lie 15.87 %."""
    values = draws(LOGNORMAL, 20_000)
    assert abs(median(values) - 1000) < 18
    assert abs(sum(value > 1000 * math.exp(0.5) for value in values) - 3173) < 210


def test_exponential_has_its_mean_and_no_memory():
    """Standard error of the mean: 1000 / sqrt(20000) = 7.1; exp(-2) = 13.53 % live twice the mean."""
    values = draws(EXPONENTIAL, 20_000)
    assert abs(fmean(values) - 1000) < 29
    assert abs(sum(value > 2000 for value in values) - 2707) < 195


def test_pareto_thins_out_by_its_power():
    """A quarter is above twice the minimum (standard deviation of the count 61), 1 % above ten times (14)."""
    values = draws(PARETO, 20_000)
    assert min(values) == 100
    assert abs(sum(value > 200 for value in values) - 5000) < 290
    assert abs(sum(value > 1000 for value in values) - 200) < 57


def test_a_histogram_fills_its_bins_by_count():
    values = draws(HISTOGRAM, 20_000)
    assert (min(values), max(values)) == (16, 63)
    assert abs(sum(value < 32 for value in values) - 5000) < 245


def test_a_mixture_weighs_its_parts_whatever_weights_they_have_inside():
    """A quarter is of the choice, three quarters of that 64."""
    values = draws(MIXTURE, 20_000)
    assert abs(values.count(64) - 3750) < 220
    assert abs(values.count(232) - 1250) < 140


@given(st.integers(1, 10**6), st.floats(0, 20), st.integers(0, 1000), st.integers(0, 10**6))
def test_tails_are_pulled_back_onto_the_bounds(middle, sigma, low, width):
    form = Lognormal[BlockSize](kind="lognormal", median=middle, sigma=sigma, min=low, max=low + width)
    assert all(low <= value <= low + width for value in draws(form, 5))


def test_draws_of_one_stream_do_not_change_those_of_another():
    laws = [make_law(LOGNORMAL, seed, name, least=0) for seed, name in ((1, "a"), (1, "b"), (2, "a"))]
    assert len({tuple(int(draw(law, counter, 0)) for counter in range(4)) for law in laws}) == 3


def test_expected_counts_are_about_the_mean():
    assert expected(40) == 40
    assert expected(UNIFORM) == 14.5
    assert expected(CHOICE) == (64 * 3 + 232) / 4
    assert expected(LOGNORMAL) == pytest.approx(1000 * math.exp(0.125))
    assert expected(EXPONENTIAL) == 1000
