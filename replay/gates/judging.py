"""Compares earlier and new figures by rules and returns findings. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from replay.analysis.metrics import is_neutral
from replay.gates.baselines import Figure, figures_for
from replay.gates.tolerances import Limit, Rule, Tolerance

Status = Literal["worse", "changed", "over", "within", "same", "better"]
FAILING = ("worse", "changed", "over")


@dataclass(frozen=True)
class Finding:
    """The result of one rule for one metric of a case."""

    metric: str
    status: Status
    now: Figure
    rule: Rule
    before: Figure | None = None
    allowed: float = 0.0
    """The accepted increase: the tolerance plus the spread of the recordings."""

    @property
    def failed(self) -> bool:
        return self.status in FAILING

    @property
    def difference(self) -> float:
        return self.now.value - self.before.value if self.before else 0.0


def judge(now: Mapping[str, Figure], before: Mapping[str, Figure] | None, rules: Sequence[Rule]) -> list[Finding]:
    """Returns a finding for each rule. Without earlier figures, tolerances are skipped."""
    findings = []
    now = figures_for((rule.metric for rule in rules), now)
    for rule in rules:
        if isinstance(rule, Limit):
            status: Status = "within" if rule.holds(now[rule.metric].value) else "over"
            findings.append(Finding(rule.metric, status, now[rule.metric], rule))
        elif before is not None:
            findings.append(_judge_one(now[rule.metric], before[rule.metric], rule))
    return findings


def _judge_one(now: Figure, before: Figure, rule: Tolerance) -> Finding:
    noise = max(now.spread, before.spread)
    allowed = rule.allowed(before.value) + noise
    difference = now.value - before.value
    status: Status
    if is_neutral(rule.metric):
        status = "changed" if abs(difference) > allowed else "within" if difference else "same"
    elif difference > allowed:
        status = "worse"
    elif difference < -noise:
        status = "better"
    else:
        status = "within" if difference else "same"
    return Finding(rule.metric, status, now, rule, before, allowed)
