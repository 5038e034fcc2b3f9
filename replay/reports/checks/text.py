"""Plain text, for terminals and logs."""

from replay.gates.checking import CaseReport, Report
from replay.reports.checks.sentences import causes, describe, headline


def render(report: Report) -> str:
    lines = [line for case in report.cases for line in _case(case)]
    return "\n".join([*lines, headline(report)])


def _case(case: CaseReport) -> list[str]:
    about = f" ({case.origin} on {case.allocator})" if case.allocator and case.failed else ""
    lines = [f"{case.state:<7} {case.name}{about}"]
    shown = [finding for finding in case.findings if finding.failed or finding.status == "better"]
    width = max((len(finding.metric) for finding in shown), default=0)
    lines += [f"    {finding.status:<7} {finding.metric:<{width}}  {describe(finding)}" for finding in shown]
    lines += [f"    {line}" for line in causes(case)]
    return lines
