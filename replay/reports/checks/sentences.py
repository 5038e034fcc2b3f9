"""Findings and causes in words, the same in every format."""

from replay.gates.baselines import Figure
from replay.gates.causes import DIMENSIONS, Cause
from replay.gates.checking import STATES, CaseReport, Report
from replay.gates.judging import Finding
from replay.gates.tolerances import Limit
from replay.reports.figures import format_metric

_WORDS = {"site": "call site", "size_class": "size class"}


def headline(report: Report) -> str:
    """Returns a line with the number of cases by state."""
    cases = len(report.cases)
    counts = {state: report.count(state) for state in STATES}
    text = ", ".join([f"{cases} case{'s' * (cases != 1)}", *(f"{n} {state}" for state, n in counts.items() if n)])
    better = sum(len(case.better) for case in report.cases)
    if not better:
        return text
    are, them = ("figure is", "it") if better == 1 else ("figures are", "them")
    return f"{text}; {better} {are} better than the baseline (--ratchet accepts {them} as the new baseline)"


def describe(finding: Finding) -> str:
    """Returns a finding as text, without the name of the metric."""
    now = format_figure(finding.metric, finding.now)
    if isinstance(finding.rule, Limit):
        return f"{now}, and {finding.rule} is {'kept' if not finding.failed else 'the limit'}"
    assert finding.before is not None
    was = format_figure(finding.metric, finding.before)
    if finding.status == "same":
        return f"{now}, as before"
    return f"{was} -> {now} ({change(finding)}, allowed {allowed(finding)})"


def change(finding: Finding) -> str:
    """Returns the difference as text, absolute and as a share of the baseline."""
    assert finding.before is not None
    sign = "+" if finding.difference > 0 else "-"
    amount = sign + format_metric(finding.metric, abs(finding.difference))
    share = f" {100 * finding.difference / finding.before.value:+.1f} %" if finding.before.value else ""
    return amount + share


def allowed(finding: Finding) -> str:
    """Returns the accepted difference as text."""
    return "nothing" if finding.allowed == 0 else "+" + format_metric(finding.metric, finding.allowed)


def format_figure(metric: str, figure: Figure) -> str:
    """Returns the value as text, with the range of several recordings."""
    value = format_metric(metric, figure.value)
    if not figure.spread:
        return value
    return f"{value} [{format_metric(metric, figure.low)} … {format_metric(metric, figure.high)}]"


def causes(case: CaseReport) -> list[str]:
    """Returns the causes of the difference, the largest first, or how to find them."""
    if case.cause is None:
        return [case.note] if case.note else []
    return [*case.cause.moved, *_changes(case.cause)]


def _changes(cause: Cause) -> list[str]:
    """Returns a line for each dimension with the largest changes of live blocks at the peak. If these are the same, of
    all requests."""
    changes, label = (cause.at_peak, "live at the peak") if cause.at_peak else (cause.requested, "requested")
    lines = []
    for dimension in DIMENSIONS:
        mine = [each for each in changes if each.dimension == dimension]
        if mine:
            text = "; ".join(
                f"{each.group} {each.blocks:+,} blocks, {'+' if each.bytes >= 0 else '-'}"
                f"{format_metric('resident_bytes_peak', abs(each.bytes))}"
                for each in mine[:3]
            )
            lines.append(f"{label}, by {_WORDS.get(dimension, dimension)}: {text}")
    return lines
