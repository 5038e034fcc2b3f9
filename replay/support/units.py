"""Parses and formats quantities with units: `256 KiB`, `20 ms`, `200/s`.

Sizes are whole bytes, times whole nanoseconds, rates events per second; a number without a unit has these units. On
command lines, times need a unit. `KiB`,
`MiB`, `GiB` are powers of 1024, `kB`, `MB`, `GB` powers of 1000. Arithmetic is decimal, so results do not depend on
floating point.
"""

import re
from decimal import Decimal
from math import isfinite
from typing import Annotated

from pydantic import BeforeValidator, WithJsonSchema

_SIZES = {
    "": 1, "b": 1,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_TIMES = {
    "": 1, "ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "min": 60 * 10**9, "h": 3600 * 10**9,
}  # fmt: skip
_QUANTITY = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,3})?)\s*([a-zµ]*)\s*", re.IGNORECASE)


def _parse(text: str | int | float, units: dict[str, int], kind: str, example: str) -> int:
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"{text!r} is not a {kind}; write it like {example}")
    if isinstance(text, str) and re.fullmatch(r"\s*0x[0-9a-f]+\s*", text, re.IGNORECASE) and kind == "size":
        text = int(text, 16)
    match = _QUANTITY.fullmatch(str(text))
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a {kind}; write it like {example}")
    value = Decimal(match[1].replace("_", "")) * factor
    if value >= 1 << 63:
        raise ValueError(f"{text!r} exceeds 63 bits")
    if value != int(value):
        raise ValueError(f"{text!r} is not a whole number of {'bytes' if kind == 'size' else 'nanoseconds'}")
    return int(value)


def parse_size(text: str | int | float) -> int:
    """Returns the bytes of `256 KiB`, `1.5 MiB`, `0x1000`, `4096`."""
    return _parse(text, _SIZES, "size", "256 KiB")


def parse_time(text: str | int | float) -> int:
    """Returns the nanoseconds of `20 ms`, `1.5 s`, `2 min`, `1000`."""
    return _parse(text, _TIMES, "time", "20 ms")


def parse_time_with_unit(text: str) -> int:
    """The same for command lines, where a number without a unit is an error, except 0."""
    match = _QUANTITY.fullmatch(text)
    if match and not match[2] and Decimal(match[1]):
        number = match[1]
        raise ValueError(f"{number}: missing unit; write {number}ns, {number}us, {number}ms or {number}s")
    return parse_time(text)


def parse_rate(text: str | int | float) -> float:
    """Returns the events per second of `200/s`, `3/ms`, `50/min`, `200`."""
    number, slash, unit = str(text).partition("/")
    span = _TIMES.get(unit.strip().lower() or "nothing") if slash else 10**9
    try:
        rate = float(Decimal(number.strip().replace("_", "")) * 10**9 / (span or 1))
    except ArithmeticError:
        rate = -1.0
    if isinstance(text, bool) or span is None or not isfinite(rate) or rate < 0:
        raise ValueError(f"{text!r} is not a rate; write it like 200/s")
    return rate


def parse_percentage(text: str) -> float:
    """Returns the share of `1%` or `0.5 %`: 0.01, 0.005."""
    number, sign, rest = text.partition("%")
    match = _QUANTITY.fullmatch(number)
    share = float(Decimal(match[1].replace("_", "")) / 100) if match and not match[2] else -1.0
    if not sign or rest.strip() or not 0 <= share <= 1:
        raise ValueError(f"{text!r} is not a percentage of at most 100%; write it like 1%")
    return share


def format_count(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 block`, `2,000 blocks`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def format_size(size_bytes: int) -> str:
    """Returns a size as `1.5 MiB`, with at most four digits; never 1024 of a unit."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if abs(value) < 1023.95 or unit == "PiB":
            break
    return f"{value:.2f} {unit}" if abs(value) < 10 else f"{value:.1f} {unit}"


def format_time(time_ns: int | float) -> str:
    """Returns a time as `1.50 ms`."""
    value = float(time_ns)
    for unit, span in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(value) >= span:
            return f"{value / span:.2f} {unit}"
    return f"{value:.0f} ns"


Size = Annotated[
    int, BeforeValidator(parse_size), WithJsonSchema({"type": ["integer", "string"], "examples": ["256 KiB"]})
]
Time = Annotated[
    int, BeforeValidator(parse_time), WithJsonSchema({"type": ["integer", "string"], "examples": ["20 ms"]})
]
Rate = Annotated[
    float, BeforeValidator(parse_rate), WithJsonSchema({"type": ["number", "string"], "examples": ["200/s"]})
]
