"""Markdown, for the summary of a CI job or a comment on a pull request."""

from replay.gates.checking import CaseReport, Report
from replay.reports.checks.sentences import before_and_now, causes, change, describe, headline

_MARKS = {"passed": "✅", "failed": "❌", "new": "🆕", "gone": "❔"}


def render(report: Report) -> str:
    lines = [f"### {'❌ Memory got worse' if report.failed else '✅ Memory is as it was'}", "", headline(report), ""]
    for case in report.cases:
        if case.failed or case.better:
            lines += _case(case)
    rest = [case.name for case in report.cases if not case.failed and not case.better]
    if rest:
        lines += [
            f"<details><summary>As before: {len(rest)}</summary>",
            "",
            ", ".join(rest),
            "",
            "</details>",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _case(case: CaseReport) -> list[str]:
    lines = [f"#### {_MARKS[case.state]} {_escape(case.name)}", ""]
    shown = [finding for finding in case.findings if finding.failed or finding.status == "better"]
    if shown:
        lines += ["| metric | before | now | change | |", "|---|---:|---:|---:|---|"]
        for finding in shown:
            if finding.before is None:
                lines.append(f"| `{finding.metric}` | | {describe(finding)} | | {finding.status} |")
            else:
                before, now = before_and_now(finding)
                lines.append(f"| `{finding.metric}` | {before} | {now} | {change(finding)} | {finding.status} |")
        lines.append("")
    return [*lines, *(f"- {_escape(line)}" for line in causes(case)), ""]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
