"""What broke a rule, and why, in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from replay.analysis.metrics import metrics_of
from replay.config import StackConfig
from replay.gates.baselines import Measured
from replay.gates.causes import NEGLIGIBLE, explain, holders
from replay.gates.checking import CaseReport
from replay.gates.judging import Finding
from replay.gates.tolerances import Limit
from replay.pytest_plugin.arguments import LEAKS
from replay.pytest_plugin.measuring import Look, look
from replay.reports.checks import sentences
from replay.reports.figures import format_metric
from replay.sources import open_source
from replay.support.units import format_size
from replay.trace import Trace

Key = TypeVar("Key")
_SIGNS = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}
_DIMENSIONS = (("site", "call site"), ("size_class", "size class"), ("domain", "domain"), ("phase", "phase"))
"""In the order in which they are printed, and their names in sentences."""
_GROUPS = 3
"""How many of the largest groups a line names."""


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
    is_compared = compared.before is not None and any(finding.before for finding in failed)
    old, note = _before(compared) if is_compared else (None, "")
    left = _left_behind(compared.look, old) if any(_is_of_the_end(finding.metric) for finding in failed) else []
    moved: tuple[str, ...] = ()
    live: list[str] = []
    if old is not None and compared.kept is not None:
        cause = explain(open_source(compared.kept), compared.trace, compared.stack)
        moved, live = cause.moved, sentences.causes(CaseReport("", "failed", cause=replace(cause, moved=())))
    elif any(finding.metric not in LEAKS for finding in failed):
        live = _held(compared)
    calls: list[str] = []
    if compared.before is not None and any(finding.metric == "syscalls" and finding.before for finding in failed):
        calls = _system_calls(compared.look, compared.before)
    return [*left, *moved, *calls, *live, *([note] if note else [])]


def _before(compared: Compared) -> tuple[Look | None, str]:
    """What the recording of before came to, if it is the one that the baseline is of; else why nothing is known."""
    assert compared.before is not None
    if compared.kept is None:
        return None, "for what changed, recordings of before are needed: --replay-traces DIR, as of the baseline"
    old = look(open_source(compared.kept), compared.stack)
    figures = metrics_of(old.summary)
    if all(round(figures[metric], 9) == figure.value for metric, figure in compared.before.figures.items()):
        return old, ""
    return None, f"{compared.kept.name} is not the recording that the baseline is of, so what changed is not known"


def _is_of_the_end(metric: str) -> bool:
    return metric in (*LEAKS, "arenas_live") or metric.endswith("_end")


def _system_calls(now: Look, before: Measured) -> list[str]:
    """Which kinds of calls became more."""
    changed = [
        f"{kind} {was.value:,.0f} -> {count:,}"
        for kind, count in now.summary.syscalls.items()
        if (was := before.figures.get(f"syscalls.{kind}")) and was.value < count
    ]
    return [f"system calls: {'; '.join(changed)}"] if changed else []


def _left_behind(now: Look, old: Look | None) -> list[str]:
    """By call site and size class, what the test allocated and did not free: the difference to before, if known."""
    lines = []
    if old is None or old.left:
        sites = [(each.site, each.place, each.blocks, each.bytes) for each in now.left]
        sites_before = {each.site: (each.blocks, each.bytes) for each in old.left} if old else None
        lines.append(("call site", _largest(sites, sites_before)))
    classes = [
        ((each.domain, each.size), f"{format_size(each.size)} of {each.domain}", each.leaked_blocks, each.leaked_bytes)
        for each in now.classes
    ]
    before = (
        {(each.domain, each.size): (each.leaked_blocks, each.leaked_bytes) for each in old.classes} if old else None
    )
    lines.append(("size class", _largest(classes, before)))
    return [f"left behind, by {word}: {told}" for word, told in lines if told]


def _largest(groups: list[tuple[Key, str, int, int]], before: Mapping[Key, tuple[int, int]] | None) -> str:
    """Key, name, blocks and bytes of groups: the difference to before if known, else all."""
    more = []
    for key, name, blocks, size_bytes in groups:
        blocks_before, bytes_before = (before or {}).get(key, (0, 0))
        if size_bytes > bytes_before:
            more.append((size_bytes - bytes_before, blocks - blocks_before, name))
    sign = "" if before is None else "+"
    more = sorted(more, key=lambda group: -group[0])[:_GROUPS]
    return "; ".join(
        f"{name} {sign}{blocks:,} blocks, {sign}{format_size(size)}"
        for size, blocks, name in more
        if size * NEGLIGIBLE >= more[0][0]
    )


def _held(compared: Compared) -> list[str]:
    """The largest groups of blocks that are live at peak, a line for each dimension."""
    groups = holders(compared.trace, compared.stack)
    lines = []
    for dimension, word in _DIMENSIONS:
        mine = [each for each in groups if each.dimension == dimension]
        told = "; ".join(f"{each.group} {each.blocks:,} blocks, {format_size(each.bytes)}" for each in mine[:_GROUPS])
        if told:
            lines.append(f"live at the peak, by {word}: {told}")
    return lines
