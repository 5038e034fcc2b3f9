"""Draws from the distributions of `replay.workload.distribution_schema`, with the same bits on every machine.

Logarithms of libraries differ in the last bit between CPUs, and random generators change with the version of their
library. So both are implemented here. They use only additions, multiplications, divisions and square roots, which IEEE
754 defines exactly, and integer arithmetic within 63 bits, so that plain Python and machine code agree.

Random numbers are counter-based: draw number n for a purpose is a function of (key, n) only. The caller has a counter,
not a generator, so an additional draw for one purpose does not change those for another.
"""

import hashlib
import math
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from replay.jit.compiling import leaf
from replay.support.limits import MAX_SIZE
from replay.workload.distribution_schema import (
    Choice,
    Exponential,
    Histogram,
    Lognormal,
    Mixture,
    Pareto,
    Uniform,
    UntilNext,
)

NEVER_NS = 1 << 62
"""A time after the end of every trace."""

_WORD = 0xFFFFFFFF
_MULTIPLIER = 0x4F1BBCDD
"""2**31 divided by the golden ratio, odd. Its product with 32 bits is below 2**63."""
_ROUNDS = 8
"""Rounds of multiplying one word and swapping it with the other. After them, each bit depends on each bit of the
counter."""

_LN2 = 0.6931471805599453
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.4286068203094173e-06
"""log 2 in two parts; the first has 16 bits, so that small multiples of it are exact."""
_SQRT_HALF = 0.7071067811865476
_ATANH = tuple(1.0 / (2 * k + 1) for k in range(11, -1, -1))
_EXP = tuple(1.0 / math.factorial(k) for k in range(14, -1, -1))

# Wichura, "Algorithm AS 241: the percentage points of the normal distribution", 1988, routine PPND16.
_CENTRE_OVER = (
    2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
    1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0,
)  # fmt: skip
_CENTRE_UNDER = (
    5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
    5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0,
)  # fmt: skip
_TAIL_OVER = (
    7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
    3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0,
)  # fmt: skip
_TAIL_UNDER = (
    1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
    6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0,
)  # fmt: skip
_FAR_OVER = (
    2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
    2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0,
)  # fmt: skip
_FAR_UNDER = (
    2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
    1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0,
)  # fmt: skip


@leaf
def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    """Evaluates a polynomial by Horner's rule; the coefficient of the highest power is first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@leaf
def log(x: float) -> float:
    """Returns the natural logarithm of a positive number."""
    mantissa, exponent = math.frexp(x)
    if mantissa < _SQRT_HALF:
        mantissa *= 2.0
        exponent -= 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = 2.0 * s * _polynomial(_ATANH, s * s)
    return exponent * _LN2_HIGH + (series + exponent * _LN2_LOW)


@leaf
def exp(x: float) -> float:
    """Returns e**x; above 700 it is e**700, below -700 it is 0."""
    if x < -700.0:
        return 0.0
    x = min(x, 700.0)
    power = math.floor(x / _LN2 + 0.5)
    rest = (x - power * _LN2_HIGH) - power * _LN2_LOW
    return math.ldexp(_polynomial(_EXP, rest), int(power))


@leaf
def normal_quantile(p: float) -> float:
    """Returns the quantile of the standard normal distribution for `p`, strictly between 0 and 1."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _polynomial(_CENTRE_OVER, r) / _polynomial(_CENTRE_UNDER, r)
    r = math.sqrt(-log(p if q < 0.0 else 1.0 - p))
    if r <= 5.0:
        value = _polynomial(_TAIL_OVER, r - 1.6) / _polynomial(_TAIL_UNDER, r - 1.6)
    else:
        value = _polynomial(_FAR_OVER, r - 5.0) / _polynomial(_FAR_UNDER, r - 5.0)
    return -value if q < 0.0 else value


@leaf
def random_words(key: int, stride: int, counter: int) -> tuple[int, int]:
    """Returns two random 32-bit words: draw number `counter` (0 to 2**62) of the stream with `key` and odd `stride`."""
    left, right = counter & _WORD, counter >> 32
    for _ in range(_ROUNDS):
        product = left * _MULTIPLIER
        left = (product >> 32) ^ key ^ right
        right = product & _WORD
        key = (key + stride) & _WORD
    return left, right


@leaf
def random_part(key: int, stride: int, counter: int) -> float:
    """Returns a random number strictly between 0 and 1, an odd multiple of 2**-53."""
    high, low = random_words(key, stride, counter)
    return ((high << 20) + (low >> 12) + 0.5) * 2.220446049250313e-16


def make_key(seed: int, *names: str) -> tuple[int, int]:
    """Returns key and stride of the random stream for a purpose, such as `("requests", "size")`."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little") | 1


_CONSTANT, _UNIFORM, _LOGNORMAL, _EXPONENTIAL, _PARETO, _UNTIL_NEXT = range(6)


class Leaf(NamedTuple):
    """A simple distribution. Every distribution is a mixture of leaves."""

    weight: Fraction
    shape: int
    low: int
    high: int
    a: float = 0.0
    b: float = 0.0


class Law(NamedTuple):
    """A distribution for kernels: leaves, and Walker's alias table, which chooses a leaf with one draw.

    Leaf i is chosen if the second word of the draw is below its threshold, else the leaf of its alias.
    """

    keys: np.ndarray
    """Key and stride for the leaf, key and stride for the value."""
    table: np.ndarray
    """A row for each leaf: threshold, alias, shape, low, high."""
    scales: np.ndarray
    """A row for each leaf: a, b."""


def leaves(law: Any, least: int, most: int) -> list[Leaf]:
    """Returns the leaves of a form of `replay.workload.distribution_schema`, with values from `least` to `most`."""
    one = Fraction(1)
    match law:
        case int():
            return [Leaf(one, _CONSTANT, max(law, least), most)]
        case "forever":
            return [Leaf(one, _CONSTANT, NEVER_NS, NEVER_NS)]
        case UntilNext():
            return [Leaf(one, _UNTIL_NEXT, law.every, most)]
        case Uniform():
            return [Leaf(one, _UNIFORM, max(law.min, least), max(law.max, least))]
        case Choice():
            return [Leaf(Fraction(w), _CONSTANT, max(v, least), most) for v, w in law.weights.items() if w]
        case Histogram():
            bins = zip(law.counts, law.edges, law.edges[1:], strict=False)
            return [Leaf(Fraction(w), _UNIFORM, max(a, least), max(b - 1, least)) for w, a, b in bins if w]
        case Mixture():
            return [leaf for part in law.parts for leaf in _part_leaves(part, least, most)]
    low = least if law.min is None else max(law.min, least)
    high = most if law.max is None else max(law.max, least)
    match law:
        case Lognormal():
            return [Leaf(one, _LOGNORMAL, low, high, float(law.median), law.sigma)]
        case Exponential():
            return [Leaf(one, _EXPONENTIAL, low, high, float(law.mean))]
        case Pareto():
            return [Leaf(one, _PARETO, low, high, float(law.min), law.alpha)]
    raise TypeError(law)


def _part_leaves(part: Any, least: int, most: int) -> list[Leaf]:
    found = leaves(part.of, least, most)
    share = Fraction(part.weight) / sum(leaf.weight for leaf in found)
    return [leaf._replace(weight=leaf.weight * share) for leaf in found]


def expected(law: Any) -> float:
    """Returns the approximate mean of a distribution of counts, for planning only."""
    total = weight = 0.0
    for part in leaves(law, 0, MAX_SIZE):
        mean = {_CONSTANT: part.low, _UNIFORM: (part.low + part.high) / 2, _EXPONENTIAL: part.a}.get(part.shape)
        if mean is None:
            mean = part.a * math.exp(min(part.b * part.b / 2, 50.0))
        total += float(part.weight) * min(mean, part.high)
        weight += float(part.weight)
    return total / weight


def make_law(law: Any, seed: int, *names: str, least: int, most: int = MAX_SIZE) -> Law:
    """Converts a form of `replay.workload.distribution_schema` for kernels. `names` identify source and purpose."""
    parts = leaves(law, least, most)
    alias_rows = _alias_table([part.weight for part in parts])
    table = [[*row, part.shape, part.low, part.high] for row, part in zip(alias_rows, parts, strict=True)]
    return Law(
        keys=np.array([*make_key(seed, *names, "leaf"), *make_key(seed, *names, "value")], np.int64),
        table=np.array(table, np.int64),
        scales=np.array([[part.a, part.b] for part in parts], np.float64),
    )


def _alias_table(weights: list[Fraction]) -> list[tuple[int, int]]:
    """Returns threshold (of 2**32) and alias of each leaf, computed exactly."""
    size, total = len(weights), sum(weights)
    share = [weight * size / total for weight in weights]
    threshold, alias = [1 << 32] * size, list(range(size))
    poor = [i for i in range(size) if share[i] < 1]
    rich = [i for i in range(size) if share[i] >= 1]
    while poor:
        i, giver = poor.pop(), rich[-1]
        threshold[i], alias[i] = int(share[i] * (1 << 32)), giver
        share[giver] -= 1 - share[i]
        if share[giver] < 1:
            poor.append(rich.pop())
    return list(zip(threshold, alias, strict=True))


@leaf
def draw(law: Law, counter: int, now_ns: int) -> int:
    """Returns draw number `counter`. `now_ns` is used by `until-next`."""
    i, keys, table = 0, law.keys, law.table
    if table.shape[0] > 1:
        high, low = random_words(keys[0], keys[1], counter)
        i = (high * table.shape[0]) >> 32
        if low >= table[i, 0]:
            i = table[i, 1]
    shape, least, most = table[i, 2], table[i, 3], table[i, 4]
    if shape == _CONSTANT:
        return least
    if shape == _UNTIL_NEXT:
        return least - now_ns % least
    part, a, b = random_part(keys[2], keys[3], counter), law.scales[i, 0], law.scales[i, 1]
    if shape == _UNIFORM:
        value = least + part * (most - least + 1) - 0.5
    elif shape == _LOGNORMAL:
        value = a * exp(b * normal_quantile(part))
    elif shape == _EXPONENTIAL:
        value = -a * log(part)
    else:
        value = a * exp(-log(part) / b)
    if value >= most:
        return most
    return max(least, int(value + 0.5))
