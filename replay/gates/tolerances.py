"""Tolerances and limits of metrics, as written on the command line and in suites.

    resident_bytes_peak:2%        at most 2 % above the baseline


    resident_bytes_peak:+64KiB    at most 64 KiB above the baseline
    arenas_live:+0                not above the baseline
    resident_bytes_peak<=64MiB    a limit that does not depend on the baseline

Lower is better. For a neutral metric, such as the number of unmapped arenas, the tolerance holds in both directions.
"""

import re
from dataclasses import dataclass
from typing import Literal

from replay.analysis.metrics import check_metric
from replay.support.errors import ConfigError
from replay.support.units import parse_size, parse_time

_RELATIVE = re.compile(r"\s*(?P<metric>[\w.]+)\s*:\s*(?P<sign>[+±]?)\s*(?P<number>[^%]+?)\s*(?P<percent>%?)\s*")
_LIMIT = re.compile(r"\s*(?P<metric>[\w.]+)\s*(?P<sign><=|>=|<|>|≤|≥)\s*(?P<number>.+?)\s*")
Sign = Literal["<=", ">=", "<", ">"]


@dataclass(frozen=True)
class Tolerance:
    """How much a metric may exceed the baseline: `share` of it, or `amount` in its unit."""

    metric: str
    amount: float = 0.0
    share: float = 0.0

    def allowed(self, baseline: float) -> float:
        return self.amount + self.share * abs(baseline)

    def __str__(self) -> str:
        return f"{self.metric}:{100 * self.share:g}%" if self.share else f"{self.metric}:+{self.amount:g}"


@dataclass(frozen=True)
class Limit:
    """An upper or lower limit of a metric."""

    metric: str
    sign: Sign
    value: float

    def holds(self, figure: float) -> bool:
        return {
            "<=": figure <= self.value, ">=": figure >= self.value, "<": figure < self.value, ">": figure > self.value,
        }[self.sign]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.value:g}"


Rule = Tolerance | Limit
DEFAULTS = tuple(
    Tolerance(metric)
    for metric in (
        "resident_bytes_peak", "resident_bytes_end", "mapped_bytes_peak", "arena_bytes_peak", "heap_bytes_peak",
        "arenas_live", "syscalls", "page_faults",
    )
)  # fmt: skip
"""Default rules of a trace or workload. A simulation is deterministic, so its figures are compared exactly."""
RECORDED_DEFAULTS = (
    *(Tolerance(each.metric, share=0.02) for each in DEFAULTS if "_bytes" in each.metric),
    Tolerance("arenas_live"),
    *(Tolerance(metric, amount=1, share=0.05) for metric in ("syscalls", "page_faults")),
)
"""Default rules of a recorded program, whose recordings vary slightly. Their spread is allowed in addition."""
TEST_DEFAULTS = (
    *(Tolerance(metric, amount=1 << 16, share=0.02) for metric in ("resident_bytes_peak", "resident_bytes_end")),
    Tolerance("syscalls", amount=8, share=0.05),
    Tolerance("page_faults", amount=1 << 4, share=0.05),
)
"""Default rules of a test, which is recorded once and often takes less than an arena. A longer path of a temporary
folder can cost some pages. Arenas and the heap grow in steps, so one more byte can cost a step. A new heap for a thread
takes up to five system calls."""


def parse_rule(text: str) -> Rule:
    """Returns the tolerance or limit of a text; raises ConfigError if it is neither."""
    if match := _LIMIT.fullmatch(text):
        sign = match["sign"].replace("≤", "<=").replace("≥", ">=")
        return Limit(check_metric(match["metric"]), sign, _number(match["metric"], match["number"], text))  # type: ignore[arg-type]
    if match := _RELATIVE.fullmatch(text):
        metric = check_metric(match["metric"])
        if match["percent"]:
            return Tolerance(metric, share=_plain(match["number"], text) / 100)
        return Tolerance(metric, amount=_number(metric, match["number"], text))
    raise ConfigError(f"{text!r} is not a rule; write it like resident_bytes_peak:2% or arenas_live:+0 or blowup<=1.4")


def parse_rules(texts: list[str]) -> list[Rule]:
    """Returns rules; raises ConfigError if a metric has two tolerances."""
    rules = [parse_rule(text) for text in texts]
    seen: set[str] = set()
    for rule in rules:
        if isinstance(rule, Tolerance):
            if rule.metric in seen:
                raise ConfigError(f"{rule.metric}: has two tolerances; keep one")
            seen.add(rule.metric)
    return rules


def with_defaults(*layers: list[Rule], defaults: tuple[Tolerance, ...] = DEFAULTS) -> list[Rule]:
    """Returns the rules of several layers; later layers override earlier ones. Returns the defaults for no rules."""
    tolerances: dict[str, Tolerance] = {}
    limits: dict[tuple[str, str], Limit] = {}
    for layer in layers:
        for rule in layer:
            if isinstance(rule, Tolerance):
                tolerances[rule.metric] = rule
            else:
                limits[rule.metric, rule.sign] = rule
    return [*(tolerances.values() or ({} if limits else defaults)), *limits.values()]


def _number(metric: str, text: str, rule_text: str) -> float:
    """Returns the number in the metric's unit. Sizes and times may have a unit."""
    for part, parse in (("_bytes", parse_size), ("_ns", parse_time)):
        if part in metric:
            try:
                return float(parse(text))
            except ValueError as mistake:
                raise ConfigError(f"{rule_text!r}: {mistake}") from None
    return _plain(text, rule_text)


def _plain(text: str, rule_text: str) -> float:
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{rule_text!r}: {text!r} is not a number of at least 0")
    return value
