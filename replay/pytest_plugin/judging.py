"""A test's verdict: what it came to, held against its limits, a baseline, and a recording of before."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay.errors import ReplayError
from replay.gates.baselines import Baseline, Figure, Measured, without_details
from replay.gates.causes import explain, holders
from replay.gates.checking import CaseReport
from replay.gates.judging import Finding, judge
from replay.gates.tolerances import RECORDED_DEFAULTS, Limit, Rule, Tolerance
from replay.metrics import metric_names
from replay.pytest_plugin.arguments import LEAKS, Wish
from replay.pytest_plugin.looking import Look, look
from replay.reports.checks.sentences import causes, describe
from replay.reports.sweeps import format_metric
from replay.sources import open_source
from replay.trace import Trace
from replay.units import format_size

SHOWN = ("resident_bytes_peak", "blowup", "arenas_peak", "arenas_live")
"""Metrics that JUnit's properties and the table at the end tell of every recorded test."""


@dataclass(frozen=True)
class Before:
    """What the test came to before: figures to compare with, and a trace that tells causes."""

    figures: Mapping[str, Figure] | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Judge:
    """Knows what was before. While a baseline is being written nothing is compared, and only limits count."""

    baseline: Baseline | None
    against: Path | None
    updates: bool

    def verdict(self, name: str, path: Path, wish: Wish) -> dict[str, Any]:
        """What the tests' process needs to tell."""
        trace = open_source(path)
        looked = look(trace, wish.stack)
        now = {metric: Figure(value=value, low=value, high=value) for metric, value in looked.figures.items()}
        before = self._before(name, wish)
        rules = self._rules(wish, before.figures is not None)
        _refuse_lacking(before, rules)
        findings = judge(now, before.figures, rules)
        failed = [finding for finding in findings if finding.failed]
        compares = not self.updates and (self.baseline is not None or self.against is not None)
        state = "failed" if failed else "new" if compares and before.figures is None else "passed"
        measured = Measured(
            case=wish.case_of(name), trace=None, stack=wish.stack_key,
            figures={metric: now[metric] for metric in metric_names()},
        )  # fmt: skip
        return {
            "state": state,
            "message": _message(wish, failed, before, trace, looked) if failed else "",
            "figures": {
                metric: looked.figures[metric] for metric in dict.fromkeys([*SHOWN, *(f.metric for f in findings)])
            },
            "requested": looked.summary.requested_bytes_peak,
            "measured": without_details(measured, (rule.metric for rule in rules)).model_dump(
                mode="json", by_alias=True
            ),
        }

    def _before(self, name: str, wish: Wish) -> Before:
        kept = self.against / trace_name(name) if self.against else None
        trace = open_source(kept) if kept and kept.exists() else None
        if self.updates:
            return Before(None, trace)
        known = self.baseline.cases.get(name) if self.baseline else None
        if known is not None:
            if known.stack != wish.stack_key:
                advice = "--replay-update takes the present one"
                raise ReplayError(f"its baseline is of another allocator than {wish.stack.name}; {advice}")
            return Before(known.figures, trace)
        if self.baseline is None and trace is not None:
            figures = look(trace, wish.stack).figures
            return Before({metric: Figure(value=each, low=each, high=each) for metric, each in figures.items()}, trace)
        return Before(None, trace)

    def _rules(self, wish: Wish, compares: bool) -> list[Rule]:
        tolerances = wish.tolerances or RECORDED_DEFAULTS
        return [*(tolerances if compares else ()), *wish.limits]


def trace_name(test: str) -> str:
    """The file in which the recording of a test is kept: readable, and different for each."""
    readable = re.sub(r"[^\w.-]+", ".", test).strip(".")[-120:]
    return f"{readable}-{hashlib.sha256(test.encode()).hexdigest()[:6]}.parquet"


def _refuse_lacking(before: Before, rules: list[Rule]) -> None:
    for rule in rules:
        if isinstance(rule, Tolerance) and before.figures is not None and rule.metric not in before.figures:
            raise ReplayError(f"its baseline has no {rule.metric}; --replay-update takes it in")


def _message(wish: Wish, failed: list[Finding], before: Before, now: Trace, looked: Look) -> str:
    lines = [f"takes more memory than it may, on {wish.stack.name}:"]
    lines += [f"  {_sentence(finding)}" for finding in failed]
    if any(finding.metric in LEAKS for finding in failed):
        lines += _left_behind(looked)
    if before.trace is not None and any(finding.before for finding in failed):
        cause = explain(before.trace, now, wish.stack)
        lines += [f"  {line}" for line in causes(CaseReport("", "failed", cause=cause))]
    elif any(finding.metric not in LEAKS for finding in failed):
        lines += _held(now, wish)
    return "\n".join(lines)


def _sentence(finding: Finding) -> str:
    if isinstance(finding.rule, Limit):
        sign = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}[finding.rule.sign]
        now, limit = (_format(finding.metric, value) for value in (finding.now.value, finding.rule.value))
        return f"{finding.metric} is {now}, and {sign} {limit} is allowed"
    return f"{finding.metric}: {describe(finding)}"


def _format(metric: str, value: float) -> str:
    if metric in LEAKS:
        return format_size(int(value)) if metric == "leaked_bytes" else f"{value:,.0f}"
    return format_metric(metric, value)


def _held(trace: Trace, wish: Wish) -> list[str]:
    """Who holds the memory at the peak."""
    lines = []
    for dimension, word in (
        ("size_class", "blocks of size"),
        ("domain", "domain"),
        ("phase", "phase"),
        ("site", "call site"),
    ):
        mine = [each for each in holders(trace, wish.stack) if each.dimension == dimension]
        told = "; ".join(f"{each.group}: {each.blocks:,} blocks, {format_size(each.bytes)}" for each in mine[:3])
        if told:
            lines.append(f"  live at the peak, by {word}: {told}")
    return lines


def _left_behind(looked: Look) -> list[str]:
    left = sorted((each for each in looked.classes if each.leaked_blocks), key=lambda each: -each.leaked_bytes)
    told = "; ".join(
        f"{format_size(each.size)} of {each.domain}: {each.leaked_blocks:,} blocks, {format_size(each.leaked_bytes)}"
        for each in left[:3]
    )
    return [f"  left behind, by size: {told}"]
