"""What markers, and options of all tests, ask for, made into rules and an allocator stack.

A marker's arguments are a dictionary here. Several markers of one test, of its class and its module, lie one on the
other, the nearest on top.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pydantic import ValidationError

from replay.config import StackConfig
from replay.errors import ConfigError
from replay.gates.cases import Case
from replay.gates.tolerances import Limit, Rule, Tolerance, parse_rule, with_defaults
from replay.metrics import metric_names
from replay.naming import nearest
from replay.sweeps.configurations import stack_key
from replay.units import parse_size

LIMIT = "max_"
LEAKS = ("leaked_blocks", "leaked_bytes")
"""What only a recording of a part of a program can tell, beside the metrics of a run."""
PLAIN = ("limits", "tolerances", "allocator", "set", "env", "enabled")


@dataclass(frozen=True)
class Wish:
    """How a test is to be played and judged."""

    stack: StackConfig
    limits: tuple[Limit, ...]
    tolerances: tuple[Tolerance, ...]
    case: dict[str, Any]
    """Arguments of a `Case` besides what it records."""

    @property
    def stack_key(self) -> str:
        return stack_key(self.stack)

    def case_of(self, name: str) -> Case:
        """As a baseline tells how its figures came to be."""
        return Case.model_validate({**self.case, "record": ["-m", "pytest", name], "recordings": 1})


def parse_wish(layers: list[dict[str, Any]]) -> Wish:
    """Of markers and options, the topmost last; ConfigError says what is wrong with them."""
    rules = [_rules(layer) for layer in layers]
    flat: list[Rule] = with_defaults(*rules, defaults=())
    allocators = [layer["allocator"] for layer in layers if layer.get("allocator") is not None]
    over: dict[str, Any] = {}
    case = {
        "allocator": allocators[-1] if allocators else None,
        "set": reduce(dict.__or__, (_mapping(layer, "set") for layer in layers), over),
        "env": reduce(dict.__or__, (_mapping(layer, "env") for layer in layers), over),
        "tolerances": [str(rule) for rule in flat if isinstance(rule, Tolerance)],
    }
    try:
        stack = Case.model_validate({**case, "record": ["pytest"]}).stack
    except ValidationError as mistakes:
        raise ConfigError(_first(mistakes)) from None
    limits = tuple(rule for rule in flat if isinstance(rule, Limit))
    return Wish(stack, limits, tuple(rule for rule in flat if isinstance(rule, Tolerance)), case)


def _first(mistakes: ValidationError) -> str:
    mistake = mistakes.errors(include_url=False)[0]
    return f"{mistake['loc'][0]}: {mistake.get('ctx', {}).get('error', mistake['msg'])}"


def _rules(layer: Mapping[str, Any]) -> list[Rule]:
    """The rules of one marker, which says nothing twice."""
    rules: list[Rule] = []
    for name, value in layer.items():
        if name.startswith(LIMIT):
            rules.append(_limit(name, value))
        elif name not in PLAIN:
            raise ConfigError(f"{name}: is no argument of it; {nearest(name, _known())}")
    rules += [_of_kind(Limit, "limits", text) for text in _texts(layer, "limits")]
    rules += [_of_kind(Tolerance, "tolerances", text) for text in _texts(layer, "tolerances")]
    _refuse_twice(rules)
    return rules


def _known() -> Iterable[str]:
    return [*PLAIN, *(LIMIT + name.replace(".", "__") for name in (*metric_names(), *LEAKS))]


def _limit(name: str, value: object) -> Limit:
    """`max_syscalls__mmap=3` is syscalls.mmap<=3."""
    metric = name.removeprefix(LIMIT).replace("__", ".")
    if metric not in metric_names() and metric not in LEAKS:
        raise ConfigError(f"{name}: there is no metric {metric!r}; {nearest(name, _known())}")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{name}: {value!r} is no limit; give a number, or text with a unit")
    if metric in LEAKS:
        try:
            return Limit(metric, "<=", float(parse_size(value)))
        except ValueError as mistake:
            raise ConfigError(f"{name}: {mistake}") from None
    rule = parse_rule(f"{metric}<={value}")
    assert isinstance(rule, Limit)
    return rule


def _of_kind(kind: type[Limit] | type[Tolerance], name: str, text: str) -> Rule:
    rule = parse_rule(text)
    if not isinstance(rule, kind):
        other = "tolerances" if kind is Limit else "limits"
        raise ConfigError(f"{name}: {text!r} belongs to {other}")
    return rule


def _refuse_twice(rules: list[Rule]) -> None:
    seen: set[object] = set()
    for rule in rules:
        what = (rule.metric, rule.sign if isinstance(rule, Limit) else "")
        if what in seen:
            raise ConfigError(f"{rule.metric}: two {'limits' if what[1] else 'tolerances'} are given; keep one")
        seen.add(what)


def _texts(layer: Mapping[str, Any], name: str) -> list[str]:
    value = layer.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ConfigError(f"{name}: give a list of texts, like [{_EXAMPLES[name]!r}]")
    return value


def _mapping(layer: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = layer.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: give a dictionary, like {_EXAMPLES[name]}")
    return value


_EXAMPLES = {
    "limits": "resident_bytes_peak<=64MiB",
    "tolerances": "resident_bytes_peak:2%",
    "set": "{'pymalloc.arena_size': '256 KiB'}",
    "env": "{'MALLOC_ARENA_MAX': 1}",
}
