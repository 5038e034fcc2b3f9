"""Findings and causes in words, the same in every format."""

from math import floor

from replay.gates.baselines import Figure
from replay.gates.causes import DIMENSIONS, Cause, Change
from replay.gates.checking import STATES, CaseReport, Report
from replay.gates.judging import Finding
from replay.gates.tolerances import Limit
from replay.reports.figures import format_metric, format_pair
from replay.support.units import format_count, format_size

_WORDS = {"phase": "in phase", "domain": "in domain", "size_class": "in size class", "site": "at"}
SHOWN = 3
"""Maximum number of groups in a sentence."""


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
    if finding.status == "same":
        return f"{now}, as before"
    return f"{' -> '.join(before_and_now(finding))} ({change(finding)}; allowed: {allowed(finding)})"


def before_and_now(finding: Finding) -> tuple[str, str]:
    """Returns the earlier and the new figure as text, with so many digits that they agree with their difference."""
    assert finding.before is not None
    texts = format_pair(finding.metric, finding.before.value, finding.now.value)
    before, now = (
        _with_range(finding.metric, figure, text)
        for figure, text in zip((finding.before, finding.now), texts, strict=True)
    )
    return before, now


def change(finding: Finding) -> str:
    """Returns the difference as text, absolute and as a share of the baseline."""
    assert finding.before is not None
    sign = "+" if finding.difference > 0 else "-"
    amount = sign + format_metric(finding.metric, abs(finding.difference))
    share = f", {100 * finding.difference / finding.before.value:+.1f} %" if finding.before.value else ""
    return amount + share


def allowed(finding: Finding) -> str:
    """Returns the accepted difference as text; whole for a metric of whole numbers."""
    assert finding.before is not None
    is_whole = finding.now.value.is_integer() and finding.before.value.is_integer()
    accepted = floor(finding.allowed) if is_whole else finding.allowed
    return "none" if accepted == 0 else "+" + format_metric(finding.metric, accepted)


def format_figure(metric: str, figure: Figure) -> str:
    """Returns the value as text, with the range of several recordings."""
    return _with_range(metric, figure, format_metric(metric, figure.value))


def _with_range(metric: str, figure: Figure, value: str) -> str:
    if not figure.spread:
        return value
    return f"{value} [{format_metric(metric, figure.low)} … {format_metric(metric, figure.high)}]"


def causes(case: CaseReport) -> list[str]:
    """Returns the causes of the difference, the largest first, or how to find them."""
    if case.cause is None:
        return [case.note] if case.note else []
    return [*case.cause.moved, *_changes(case.cause)]


def _changes(cause: Cause) -> list[str]:
    """Returns a sentence for each dimension with the largest changes of live blocks at the peak. If these are the same,
    of all requests."""
    changes, what = (cause.at_peak, "live bytes at the peak") if cause.at_peak else (cause.requested, "requested bytes")
    lines = []
    for dimension in DIMENSIONS:
        mine = [_change(each) for each in changes if each.dimension == dimension][:SHOWN]
        if mine:
            lines.append(f"{what} {' and '.join([*filter(None, [', '.join(mine[:-1])]), mine[-1]])}")
    return lines


def _change(change: Change) -> str:
    verb = "grew" if change.bytes >= 0 else "fell"
    more = "more" if change.blocks > 0 else "fewer"
    blocks = format_count(abs(change.blocks), f"{more} block") if change.blocks else "as many blocks"
    return f"{verb} by {format_size(abs(change.bytes))} ({blocks}) {_WORDS[change.dimension]} {change.group}"
