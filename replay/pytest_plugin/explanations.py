"""Describes failed rules and their causes in sentences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from replay.analysis.metrics import metrics_of
from replay.config import StackConfig
from replay.gates.baselines import Measured
from replay.gates.causes import NEGLIGIBLE, explain, live_at_peak
from replay.gates.checking import CaseReport
from replay.gates.judging import Finding
from replay.gates.tolerances import Limit
from replay.pytest_plugin.arguments import LEAKS
from replay.pytest_plugin.measuring import Results, measure_recording
from replay.reports.checks import sentences
from replay.reports.figures import format_metric
from replay.sources import open_source
from replay.support.units import format_size
from replay.trace import Trace

Key = TypeVar("Key")
_SIGNS = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}
_DIMENSIONS = (("site", "call site"), ("size_class", "size class"), ("domain", "domain"), ("phase", "phase"))
"""Dimensions in the order of the output, and their names in sentences."""
_GROUPS = 3
"""Maximum number of groups in a line."""


@dataclass(frozen=True)
class Compared:
    """The new and the earlier measurement of a test."""

    trace: Trace
    measure_recording: Results
    before: Measured | None
    recording_before: Path | None
    """The earlier recording, if it exists."""
    stack: StackConfig


def sentence(finding: Finding) -> str:
    """Returns a sentence about a failed rule."""
    if isinstance(finding.rule, Limit):
        now, limit = (_format(finding.metric, value) for value in (finding.now.value, finding.rule.value))
        return f"{finding.metric} is {now}, and {_SIGNS[finding.rule.sign]} {limit} is allowed"
    return f"{finding.metric}: {sentences.describe(finding)}"


def _format(metric: str, value: float) -> str:
    if metric in LEAKS:
        return format_size(int(value)) if metric == "leaked_bytes" else f"{value:,.0f}"
    return format_metric(metric, value)


def causes(failed: Sequence[Finding], compared: Compared) -> list[str]:
    """Returns causes, the most specific first: changes if the earlier recording is known, else the largest groups."""
    is_compared = compared.before is not None and any(finding.before for finding in failed)
    old, note = _before(compared) if is_compared else (None, "")
    leaks = _leaks(compared.measure_recording, old) if any(_is_at_end(finding.metric) for finding in failed) else []
    moved: tuple[str, ...] = ()
    live: list[str] = []
    if old is not None and compared.recording_before is not None:
        cause = explain(open_source(compared.recording_before), compared.trace, compared.stack)
        moved, live = cause.moved, sentences.causes(CaseReport("", "failed", cause=replace(cause, moved=())))
    elif any(finding.metric not in LEAKS for finding in failed):
        live = _live_at_peak(compared)
    calls: list[str] = []
    if compared.before is not None and any(finding.metric == "syscalls" and finding.before for finding in failed):
        calls = _system_calls(compared.measure_recording, compared.before)
    return [*leaks, *moved, *calls, *live, *([note] if note else [])]


def _before(compared: Compared) -> tuple[Results | None, str]:
    """Returns the results of the earlier recording; or None and the reason, if the baseline has other figures."""
    assert compared.before is not None
    if compared.recording_before is None:
        return None, "to see what changed, use --replay-traces DIR with the recordings of the baseline"
    old = measure_recording(open_source(compared.recording_before), compared.stack)
    figures = metrics_of(old.summary)
    if all(round(figures.get(metric, 0), 9) == figure.value for metric, figure in compared.before.figures.items()):
        return old, ""
    return None, f"{compared.recording_before.name} is not the recording of the baseline, so the changes are unknown"


def _is_at_end(metric: str) -> bool:
    return metric in (*LEAKS, "arenas_live") or metric.endswith("_end")


def _system_calls(now: Results, before: Measured) -> list[str]:
    """Returns a line with the kinds of system calls that increased."""
    changed = [
        f"{kind} {was.value:,.0f} -> {count:,}"
        for kind, count in now.summary.syscalls.items()
        if (was := before.figures.get(f"syscalls.{kind}")) and was.value < count
    ]
    return [f"system calls: {'; '.join(changed)}"] if changed else []


def _leaks(now: Results, old: Results | None) -> list[str]:
    """Returns lines with leaked blocks by call site and by size class; the difference to before if known."""
    lines = []
    if old is None or old.leaks:
        sites = [(each.site, each.place, each.blocks, each.bytes) for each in now.leaks]
        sites_before = {each.site: (each.blocks, each.bytes) for each in old.leaks} if old else None
        lines.append(("call site", _largest(sites, sites_before)))
    classes = [
        ((each.domain, each.size), f"{format_size(each.size)} of {each.domain}", each.leaked_blocks, each.leaked_bytes)
        for each in now.classes
    ]
    before = (
        {(each.domain, each.size): (each.leaked_blocks, each.leaked_bytes) for each in old.classes} if old else None
    )
    lines.append(("size class", _largest(classes, before)))
    return [f"leaked, by {word}: {groups}" for word, groups in lines if groups]


def _largest(groups: list[tuple[Key, str, int, int]], before: Mapping[Key, tuple[int, int]] | None) -> str:
    """Returns the largest groups as text: the difference to before if known, else the total.

    `groups` has key, name, blocks and bytes.
    """
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


def _live_at_peak(compared: Compared) -> list[str]:
    """Returns a line for each dimension with the largest groups of live blocks at the peak."""
    groups = live_at_peak(compared.trace, compared.stack)
    lines = []
    for dimension, word in _DIMENSIONS:
        mine = [each for each in groups if each.dimension == dimension]
        text = "; ".join(f"{each.group} {each.blocks:,} blocks, {format_size(each.bytes)}" for each in mine[:_GROUPS])
        if text:
            lines.append(f"live at the peak, by {word}: {text}")
    return lines
