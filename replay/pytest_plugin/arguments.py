"""What markers, and options of all tests, ask for, made into rules and an allocator stack.

A marker's arguments are a dictionary here. Several markers of one test, of its class and its module, lie one on the
other, the nearest on top; options of all tests lie under them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from replay.analysis.metrics import metric_names
from replay.config import StackConfig
from replay.gates.cases import Case
from replay.gates.tolerances import Limit, Rule, Sign, Tolerance, parse_rule, with_defaults
from replay.support.errors import ConfigError
from replay.support.names import nearest
from replay.support.units import parse_size
from replay.trace import Metadata

SIGNS: dict[str, Sign] = {"max_": "<=", "min_": ">="}
LEAKS = ("leaked_blocks", "leaked_bytes")
"""What only a recording of a part of a program can tell, beside the metrics of a run."""
PLAIN = ("tolerances", "allocator", "set", "env", "enabled")


@dataclass(frozen=True)
class Wish:
    """How a test is simulated and judged."""

    limits: tuple[Limit, ...]
    tolerances: tuple[Tolerance, ...]
    case: dict[str, Any]
    """Arguments of a `Case` besides what it records."""

    def stack(self, *recordings: Metadata) -> StackConfig:
        """The allocator stack for these recordings."""
        return self.case_of("").stack(*recordings)

    def case_of(self, test: str) -> Case:
        """The form in which a baseline says how its figures were measured."""
        return Case.model_validate({**self.case, "record": ["-m", "pytest", test], "recordings": 1})


def parse_wish(for_all: Mapping[str, Any], layers: list[dict[str, Any]]) -> Wish:
    """Of options of all tests and of markers, the topmost last; ConfigError says what is wrong with them."""
    rules: list[Rule] = with_defaults(_rules_for_all(for_all), *map(_rules, layers), defaults=())
    tolerances = tuple(rule for rule in rules if isinstance(rule, Tolerance))
    allocators = [layer["allocator"] for layer in (for_all, *layers) if layer.get("allocator") is not None]
    case = {
        "allocator": allocators[-1] if allocators else None,
        "set": _overlaid(layers, "set"),
        "env": _overlaid(layers, "env"),
        "tolerances": [str(rule) for rule in tolerances],
    }
    wish = Wish(tuple(rule for rule in rules if isinstance(rule, Limit)), tolerances, case)
    try:
        wish.stack()
    except ValidationError as mistakes:
        raise ConfigError(_first(mistakes)) from None
    return wish


def _first(mistakes: ValidationError) -> str:
    mistake = mistakes.errors(include_url=False)[0]
    return f"{mistake['loc'][0]}: {mistake.get('ctx', {}).get('error', mistake['msg'])}"


def _rules_for_all(for_all: Mapping[str, Any]) -> list[Rule]:
    """Those of the options `replay_limits` and `replay_tolerances`."""
    rules: list[Rule] = [_limit_for_all(text) for text in for_all.get("limits", [])]
    rules += [_tolerance("replay_tolerances", text) for text in for_all.get("tolerances", [])]
    return _each_once(rules)


def _limit_for_all(text: str) -> Limit:
    metric, sign, value = map(str.strip, text.partition("<="))
    if sign and metric in LEAKS:
        return _leak_limit(f"replay_limits: {text}", metric, "<=", value)
    rule = parse_rule(text)
    if not isinstance(rule, Limit):
        raise ConfigError(f"replay_limits: {text!r} is a tolerance, which belongs to replay_tolerances")
    return rule


def _rules(layer: Mapping[str, Any]) -> list[Rule]:
    """The rules of one marker, which says nothing twice."""
    rules: list[Rule] = [_limit(name, value) for name, value in layer.items() if name not in PLAIN]
    return _each_once([*rules, *(_tolerance("tolerances", text) for text in _texts(layer, "tolerances"))])


def _limit(name: str, value: object) -> Limit:
    """`max_syscalls__mmap=3` is syscalls.mmap<=3."""
    sign, metric = SIGNS.get(name[:4]), name[4:].replace("__", ".")
    known = [
        *PLAIN, *(start + each.replace(".", "__") for start in SIGNS for each in (*metric_names(), *LEAKS)),
    ]  # fmt: skip
    if sign is None:
        meant = name.replace("__", ".")
        limits = meant in metric_names() or meant in LEAKS
        raise ConfigError(f"{name}: is not an argument; {f'write max_{name}' if limits else nearest(name, known)}")
    if metric not in metric_names() and metric not in LEAKS:
        raise ConfigError(f"{name}: there is no metric {metric!r}; {nearest(name, known)}")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{name}: {value!r} is not a limit; write a number, or text with a unit")
    if metric in LEAKS:
        return _leak_limit(name, metric, sign, value)
    try:
        rule = parse_rule(f"{metric}{sign}{value}")
    except ConfigError as mistake:
        raise ConfigError(f"{name}: {mistake}") from None
    assert isinstance(rule, Limit)
    return rule


def _leak_limit(said: str, metric: str, sign: Sign, value: int | float | str) -> Limit:
    try:
        return Limit(metric, sign, float(parse_size(value)))
    except ValueError as mistake:
        raise ConfigError(f"{said}: {mistake}") from None


def _tolerance(name: str, text: str) -> Tolerance:
    rule = parse_rule(text)
    if isinstance(rule, Limit):
        raise ConfigError(f"{name}: {text!r} is a limit; write it like max_blowup=1.4")
    return rule


def _each_once(rules: list[Rule]) -> list[Rule]:
    seen: set[object] = set()
    for rule in rules:
        what = (rule.metric, rule.sign if isinstance(rule, Limit) else "")
        if what in seen:
            raise ConfigError(f"{rule.metric}: two {'limits' if what[1] else 'tolerances'} are given; keep one")
        seen.add(what)
    return rules


def _texts(layer: Mapping[str, Any], name: str) -> list[str]:
    value = layer.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{name}: give a list of texts, like ['resident_bytes_peak:2%']")
    return value


def _overlaid(layers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The dictionaries of that name, upper ones over lower ones."""
    laid: dict[str, Any] = {}
    for layer in layers:
        value = layer.get(name, {})
        if not isinstance(value, dict):
            example = {"set": "{'pymalloc.arena_size': '256 KiB'}", "env": "{'MALLOC_ARENA_MAX': 1}"}[name]
            raise ConfigError(f"{name}: give a dictionary, like {example}")
        laid |= value
    return laid
