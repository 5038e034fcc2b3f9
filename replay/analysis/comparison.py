"""Compares runs of several traces or stacks, and attributes the differences to what differs between them.

What differs are *factors*: the trace, settings of the garbage collector, which models there are, and each section or
setting of a model. A run exists for every combination of factors of both sides. The effect of one factor is its mean
over all orders in which the factors can be exchanged one after the other (the Shapley value), so the effects of all
factors add up to the difference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations
from math import factorial
from typing import Any, NamedTuple

from pydantic import ValidationError

from replay.allocators import model_names
from replay.analysis.metrics import Summary, summarize
from replay.config.collector import with_collector
from replay.config.stack import StackConfig, stack_type
from replay.simulation.result import RunResult
from replay.simulation.run import run
from replay.trace import Trace
from replay.trace.editing.collecting import CollectorSettings

ATTRIBUTED = ("resident_bytes_peak", "resident_bytes_mean", "resident_bytes_end")
METRICS = (
    "requested_bytes_peak", *ATTRIBUTED, "retained_bytes_at_peak", "retained_bytes_end", "blowup", "arenas_peak",
    "syscalls", "page_faults", "simulated_ns",
)  # fmt: skip
REQUESTS = "requests of the program"
MODELS = "models"
COLLECTOR = "gc"
_DOMAINS = "domains"
SETTINGS_MAX = 4
"""With more factors, the settings of a section are one factor."""
Setting = tuple[str, str]
"""Section and key; of `domains`, all keys are one setting."""


class Case(NamedTuple):
    """A trace, a stack, and settings of the garbage collector."""

    label: str
    source: str
    trace: Trace
    stack: StackConfig
    options: tuple[str, ...] = ()
    """Its settings on a command line, besides those of all cases."""
    collector: CollectorSettings = CollectorSettings()


class Factor(NamedTuple):
    """Something that differs between two cases."""

    name: str
    before: str
    after: str
    """As text, "" where it is no single value."""
    settings: frozenset[Setting]
    """What is exchanged; empty for the trace."""


class Effect(NamedTuple):
    """What a factor contributes to the difference of a metric."""

    factor: str
    before: str
    after: str
    amount: int


@dataclass(frozen=True)
class CaseResult:
    """A case, and its run."""

    label: str
    source: str
    stack: str
    summary: Summary
    result: RunResult


@dataclass(frozen=True)
class Attribution:
    """Where the differences between the first case and another come from. The effects of a metric add up to it."""

    label: str
    effects: dict[str, list[Effect]]
    """By metric, of ATTRIBUTED."""
    runs: int


@dataclass(frozen=True)
class Comparison:
    """The results of all cases, and an attribution for each case but the first."""

    cases: list[CaseResult]
    attributions: list[Attribution]


def compare(
    cases: Sequence[Case], *, attribute: bool = True, progress: Callable[[int], None] | None = None
) -> Comparison:
    """Simulates all cases, and attributes the differences from the first. `progress` gets the number of runs so far."""
    runs = 0
    collected: dict[tuple[int, CollectorSettings], Trace] = {}

    def summary_of(case: Case) -> tuple[Summary, RunResult]:
        nonlocal runs
        key = id(case.trace), case.collector
        if key not in collected:
            collected[key] = with_collector(case.trace, case.collector)
        result = run(collected[key], case.stack)
        runs += 1
        if progress:
            progress(runs)
        return summarize(result), result

    results = [CaseResult(case.label, case.source, case.stack.name, *summary_of(case)) for case in cases]
    attributions = []
    for case, found in zip(cases[1:], results[1:], strict=True):
        if attribute:
            known = {frozenset[Factor](): results[0].summary}
            attributions.append(_attribution(cases[0], case, known, found.summary, lambda case: summary_of(case)[0]))
    return Comparison(results, attributions)


def _attribution(
    first: Case,
    other: Case,
    known: dict[frozenset[Factor], Summary],
    last: Summary,
    simulate: Callable[[Case], Summary],
) -> Attribution:
    """Returns the effects of all factors. `known` has the first case's summary, and gets those of all combinations."""
    factors = _factors(first, other)
    known[frozenset(factors)] = last
    before = len(known)
    for size in range(1, len(factors)):
        for exchanged in combinations(factors, size):
            known[frozenset(exchanged)] = simulate(_mixed(first, other, exchanged))
    effects = {
        metric: _shapley(factors, {key: getattr(each, metric) for key, each in known.items()}) for metric in ATTRIBUTED
    }
    return Attribution(other.label, effects, len(known) - before)


def _shapley(factors: Sequence[Factor], values: dict[frozenset[Factor], int]) -> list[Effect]:
    """Returns the effect of each factor, largest first. They are integers whose sum is the whole difference."""
    count = len(factors)
    exact: dict[Factor, Fraction] = {}
    for factor in factors:
        others = [each for each in factors if each != factor]
        exact[factor] = sum(
            (
                Fraction(factorial(size) * factorial(count - size - 1), factorial(count))
                * (values[frozenset([*some, factor])] - values[frozenset(some)])
                for size in range(count)
                for some in combinations(others, size)
            ),
            Fraction(0),
        )
    rounded = {factor: round(amount) for factor, amount in exact.items()}
    if factors:
        largest = max(factors, key=lambda factor: abs(exact[factor]))
        rounded[largest] += values[frozenset(factors)] - values[frozenset()] - sum(rounded.values())
    found = [Effect(factor.name, factor.before, factor.after, rounded[factor]) for factor in factors]
    return sorted(found, key=lambda effect: -abs(effect.amount))


def _factors(first: Case, other: Case) -> list[Factor]:
    """Returns what differs between two cases: single settings, or sections if settings are many or not independent."""
    requests = [Factor(REQUESTS, first.source, other.source, frozenset())] if first.trace is not other.trace else []
    mine, theirs = _settings(first), _settings(other)
    different = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    shared = {*first.stack.models, "linux", COLLECTOR} & {*other.stack.models, "linux", COLLECTOR}
    if {*first.stack.models} == {*other.stack.models}:
        shared.add(_DOMAINS)
    of_models = [key for key in different if key[0] not in shared]
    factors = requests
    if of_models:
        before, after = (" on ".join(reversed(case.stack.models)) for case in (first, other))
        factors = [*factors, Factor(MODELS, before, after, frozenset(of_models))]
    single = [
        Factor(".".join(filter(None, key)), *_as_texts(mine[key], theirs[key]), frozenset([key]))
        for key in different
        if key[0] in shared
    ]
    if len(factors) + len(single) <= SETTINGS_MAX and _can_be_exchanged(first, other, single):
        return [*factors, *single]
    sections = sorted({key[0] for key in different if key[0] in shared})
    grouped = [
        Factor(f"settings of {name}", "", "", frozenset(key for key in different if key[0] == name))
        for name in sections
    ]
    if _can_be_exchanged(first, other, [*factors[len(requests) :], *grouped]):
        return [*factors, *grouped]
    collector = [factor for factor in grouped if COLLECTOR in (key[0] for key in factor.settings)]
    of_stack = frozenset(key for key in different if key[0] != COLLECTOR)
    return [*requests, *collector, Factor("stack", first.stack.name, other.stack.name, of_stack)]


def _can_be_exchanged(first: Case, other: Case, factors: Sequence[Factor]) -> bool:
    """Whether the stack of each combination is valid."""
    for size in range(1, len(factors) + 1):
        for exchanged in combinations(factors, size):
            try:
                _mixed(first, other, exchanged)
            except ValidationError:
                return False
    return True


def _mixed(first: Case, other: Case, exchanged: Sequence[Factor]) -> Case:
    """Returns the first case with the exchanged factors taken from the other one."""
    settings, theirs = _settings(first), _settings(other)
    for factor in exchanged:
        for key in factor.settings:
            if key in theirs:
                settings[key] = theirs[key]
    data: dict[str, Any] = {"name": first.stack.name}
    for (section, name), value in settings.items():
        if section == _DOMAINS:
            data[section] = value
        else:
            data.setdefault(section, {})[name] = value
    collector = replace(first.collector, **data.pop(COLLECTOR))
    stack = stack_type(*(name for name in data if name in model_names())).model_validate(data)
    trace = other.trace if any(factor.name == REQUESTS for factor in exchanged) else first.trace
    return first._replace(trace=trace, stack=stack, collector=collector)


def _settings(case: Case) -> dict[Setting, Any]:
    """Returns the settings that results depend on."""
    return dict(_each_setting(case))


def _each_setting(case: Case) -> Iterator[tuple[Setting, Any]]:
    domains = case.stack.domains
    yield (_DOMAINS, ""), dict(zip(type(domains).model_fields, domains.by_number(), strict=True))
    for name in ("linux", *case.stack.models):
        for key, value in getattr(case.stack, name).model_dump().items():
            yield (name, key), value
    for key, value in vars(case.collector).items():
        yield (COLLECTOR, key), value


def _as_texts(before: Any, after: Any) -> tuple[str, str]:
    """Returns two values as text; of mappings, only what differs."""
    if isinstance(before, dict):
        keys = [key for key in before if before[key] != after[key]]
        before, after = (", ".join(f"{key} {value[key]}" for key in keys) for value in (before, after))
    return _as_text(before), _as_text(after)


def _as_text(value: Any) -> str:
    return "default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
