"""Converts arguments of markers, and options for all tests, into rules and an allocator stack.

The arguments of a marker are a dictionary, called a layer. A test can have layers of its module, its class and its own:
the nearest overrides the others, and all override the options for all tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from replay.analysis.metrics import known_metrics
from replay.config import StackConfig
from replay.gates.cases import Case
from replay.gates.tolerances import Limit, Rule, Sign, Tolerance, parse_rule, with_defaults
from replay.support.errors import ConfigError
from replay.support.names import nearest
from replay.support.units import parse_size
from replay.support.yaml_documents import explain
from replay.trace import Metadata

SIGNS: dict[str, Sign] = {"max_": "<=", "min_": ">="}
LEAKS = ("leaked_blocks", "leaked_bytes")
"""Metrics that only recorded tests and blocks have, in addition to those of a run."""
PINNED = "max_pinned"
PLAIN = ("tolerances", "allocator", "set", "env", "enabled", PINNED)


@dataclass(frozen=True)
class Settings:
    """The settings with which a test is simulated and judged."""

    limits: tuple[Limit, ...]
    tolerances: tuple[Tolerance, ...]
    case: dict[str, Any]
    """Arguments of a `Case`, without the program to record."""
    pinned: dict[str, int]
    """By part of the name of call sites: the resident bytes that their blocks may pin at the end."""

    def stack(self, *recordings: Metadata) -> StackConfig:
        """Returns the allocator stack for these recordings."""
        return self.case_of("").stack(*recordings)

    def case_of(self, test: str) -> Case:
        """Returns the case under which a baseline stores the figures of the test."""
        return Case.model_validate({**self.case, "record": ["-m", "pytest", test], "recordings": 1})


def parse_settings(for_all: Mapping[str, Any], layers: list[dict[str, Any]]) -> Settings:
    """Returns the settings of a test from the options for all tests and its layers, the nearest last.

    Raises ConfigError for an invalid argument.
    """
    rules: list[Rule] = with_defaults(_rules_for_all(for_all), *map(_rules, layers), defaults=())
    tolerances = tuple(rule for rule in rules if isinstance(rule, Tolerance))
    allocators = [layer["allocator"] for layer in (for_all, *layers) if layer.get("allocator") is not None]
    case = {
        "allocator": allocators[-1] if allocators else None,
        "set": _merged(layers, "set"),
        "env": _merged(layers, "env"),
        "tolerances": [str(rule) for rule in tolerances],
    }
    settings = Settings(tuple(rule for rule in rules if isinstance(rule, Limit)), tolerances, case, _pinned(layers))
    try:
        settings.stack()
    except ValidationError as mistakes:
        raise ConfigError(_first(mistakes)) from None
    return settings


def _first(mistakes: ValidationError) -> str:
    mistake = mistakes.errors(include_url=False)[0]
    return f"{mistake['loc'][0]}: {explain({}, mistake)}"


def _rules_for_all(for_all: Mapping[str, Any]) -> list[Rule]:
    """Returns the rules of the options `replay_limits` and `replay_tolerances`."""
    rules: list[Rule] = [_limit_for_all(text) for text in for_all.get("limits", [])]
    rules += [_tolerance("replay_tolerances", text) for text in for_all.get("tolerances", [])]
    return _without_duplicates(rules)


def _limit_for_all(text: str) -> Limit:
    metric, sign, value = map(str.strip, text.partition("<="))
    if sign and metric in LEAKS:
        return _leak_limit(f"replay_limits: {text}", metric, "<=", value)
    rule = parse_rule(text)
    if not isinstance(rule, Limit):
        raise ConfigError(f"replay_limits: {text!r} is a tolerance, which belongs to replay_tolerances")
    return rule


def _rules(layer: Mapping[str, Any]) -> list[Rule]:
    """Returns the rules of one marker; raises ConfigError if two are about the same metric."""
    rules: list[Rule] = [_limit(name, value) for name, value in layer.items() if name not in PLAIN]
    return _without_duplicates([*rules, *(_tolerance("tolerances", text) for text in _texts(layer, "tolerances"))])


def _pinned(layers: list[dict[str, Any]]) -> dict[str, int]:
    found = {}
    for site, value in _merged(layers, PINNED).items():
        try:
            found[site] = parse_size(value)
        except (ValueError, TypeError):
            raise ConfigError(f"{PINNED}: {value!r} of {site!r} is not a size; write it like '256 KiB'") from None
    return found


def _limit(name: str, value: object) -> Limit:
    """Returns the limit of an argument: `max_syscalls__mmap=3` is the limit syscalls.mmap<=3."""
    sign, metric = SIGNS.get(name[:4]), name[4:].replace("__", ".")
    known = [
        *PLAIN, *(start + each.replace(".", "__") for start in SIGNS for each in (*known_metrics(), *LEAKS)),
    ]  # fmt: skip
    if sign is None:
        metric_meant = name.replace("__", ".")
        limits = metric_meant in known_metrics() or metric_meant in LEAKS
        raise ConfigError(f"{name}: unknown argument; {f'write max_{name}' if limits else nearest(name, known)}")
    if metric not in known_metrics() and metric not in LEAKS:
        raise ConfigError(f"{name}: unknown metric {metric!r}; {nearest(name, known)}")
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


def _leak_limit(argument: str, metric: str, sign: Sign, value: int | float | str) -> Limit:
    try:
        return Limit(metric, sign, float(parse_size(value)))
    except ValueError as mistake:
        raise ConfigError(f"{argument}: {mistake}") from None


def _tolerance(name: str, text: str) -> Tolerance:
    rule = parse_rule(text)
    if isinstance(rule, Limit):
        raise ConfigError(f"{name}: {text!r} is a limit; write it like max_blowup=1.4")
    return rule


def _without_duplicates(rules: list[Rule]) -> list[Rule]:
    seen: set[object] = set()
    for rule in rules:
        key = (rule.metric, rule.sign if isinstance(rule, Limit) else "")
        if key in seen:
            raise ConfigError(f"{rule.metric}: has two {'limits' if key[1] else 'tolerances'}; keep one")
        seen.add(key)
    return rules


def _texts(layer: Mapping[str, Any], name: str) -> list[str]:
    value = layer.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{name}: write a list of strings, like ['resident_bytes_peak:2%']")
    return value


def _merged(layers: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Returns the union of the layers' dictionaries `name`; later layers override earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        value = layer.get(name, {})
        if not isinstance(value, dict):
            example = {
                "set": "{'pymalloc.arena_size': '256 KiB'}", "env": "{'MALLOC_ARENA_MAX': 1}",
                PINNED: "{'orders.py': '256 KiB'}",
            }[name]  # fmt: skip
            raise ConfigError(f"{name}: write a dictionary, like {example}")
        merged |= value
    return merged
