"""What broke a rule, and why, in sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from replay.config import StackConfig
from replay.gates.baselines import Measured
from replay.gates.causes import explain, holders
from replay.gates.checking import CaseReport
from replay.gates.judging import Finding
from replay.gates.tolerances import Limit
from replay.metrics import metrics_of
from replay.pytest_plugin.arguments import LEAKS
from replay.pytest_plugin.looking import Asked, Look, look
from replay.reports.checks import sentences
from replay.reports.sweeps import format_metric
from replay.sources import open_source
from replay.trace import Trace
from replay.units import format_size

_SIGNS = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}
_GROUPS = 3
"""The largest ones are told."""


@dataclass(frozen=True)
class Compared:
    """A recorded test now and before."""

    trace: Trace
    look: Look
    before: Measured | None
    kept: Path | None
    """The recording of before, if there is one."""
    stack: StackConfig


def sentence(finding: Finding) -> str:
    """What is wrong with one metric."""
    if isinstance(finding.rule, Limit):
        now, limit = (_format(finding.metric, value) for value in (finding.now.value, finding.rule.value))
        return f"{finding.metric} is {now}, and {_SIGNS[finding.rule.sign]} {limit} is allowed"
    return f"{finding.metric}: {sentences.describe(finding)}"


def _format(metric: str, value: float) -> str:
    if metric in LEAKS:
        return format_size(int(value)) if metric == "leaked_bytes" else f"{value:,.0f}"
    return format_metric(metric, value)


def causes(failed: Sequence[Finding], compared: Compared) -> list[str]:
    """Why, the most telling first: what changed where that can be known, else what there is."""
    old: Look | None = None
    lines: list[str] = []
    if compared.before is not None and any(finding.before for finding in failed):
        lines += _system_calls(failed, compared.look, compared.before)
        if compared.kept is None:
            lines.append("for what changed, recordings of before are needed: --replay-traces DIR, as of the baseline")
        else:
            before = open_source(compared.kept)
            old = look(before, compared.stack)
            if _is_of(old, compared.before):
                cause = explain(before, compared.trace, compared.stack)
                lines = [*sentences.causes(CaseReport("", "failed", cause=cause)), *lines]
            else:
                old = None
                lines.append(f"{compared.kept.name} is not the recording that the baseline is of; no cause is known")
    if any(finding.metric in (*LEAKS, "arenas_live") or finding.metric.endswith("_end") for finding in failed):
        lines = [*_left_behind(compared.look, old), *lines]
    if old is None and any(finding.metric not in LEAKS for finding in failed):
        lines += _held(compared)
    return lines


def _is_of(old: Look, before: Measured) -> bool:
    figures = metrics_of(old.summary)
    return all(round(figures[metric], 9) == figure.value for metric, figure in before.figures.items())


def _system_calls(failed: Sequence[Finding], now: Look, before: Measured) -> list[str]:
    """Which kinds of calls became more, where there may not be more."""
    if not any(finding.metric == "syscalls" and finding.before for finding in failed):
        return []
    changed = [
        f"{kind} {was.value:,.0f} -> {count:,}"
        for kind, count in now.summary.syscalls.items()
        if (was := before.figures.get(f"syscalls.{kind}")) and was.value < count
    ]
    return [f"system calls: {'; '.join(changed)}"] if changed else []


def _left_behind(now: Look, old: Look | None) -> list[str]:
    """By size class, what the test asked for and did not free: the difference to before, if that is known."""
    was = {(each.domain, each.size): each for each in old.classes} if old else {}
    nothing = Asked("", 0, 0, 0, 0, 0)
    left = []
    for each in now.classes:
        then = was.get((each.domain, each.size), nothing)
        left.append((each.leaked_bytes - then.leaked_bytes, each.leaked_blocks - then.leaked_blocks, each))
    left = sorted((row for row in left if row[0] > 0), key=lambda row: -row[0])[:_GROUPS]
    sign = "+" if old else ""
    told = "; ".join(
        f"{format_size(each.size)} of {each.domain} {sign}{blocks:,} blocks, {sign}{format_size(size)}"
        for size, blocks, each in left
    )
    return [f"left behind, by size class: {told}"] if told else []


def _held(compared: Compared) -> list[str]:
    """Who holds the memory at the peak."""
    lines = []
    for dimension, word in (
        ("size_class", "size class"),
        ("domain", "domain"),
        ("phase", "phase"),
        ("site", "call site"),
    ):
        mine = [each for each in holders(compared.trace, compared.stack) if each.dimension == dimension]
        told = "; ".join(f"{each.group} {each.blocks:,} blocks, {format_size(each.bytes)}" for each in mine[:_GROUPS])
        if told:
            lines.append(f"live at the peak, by {word}: {told}")
    return lines
