"""Workflow commands of GitHub Actions: an error for each finding, a notice for each improvement."""

from replay.gates.checking import Report
from replay.reports.checks.sentences import causes, describe


def render(report: Report) -> str:
    lines = []
    for case in report.cases:
        for finding in case.worse:
            message = "\n".join([f"{finding.metric}: {describe(finding)}", *causes(case)])
            lines.append(f"::error title={_property(f'{case.name}: {finding.metric}')}::{_data(message)}")
        if case.failed and not case.worse:
            lines.append(f"::error title={_property(case.name)}::{_data(f'{case.state}: {case.note}')}")
        lines += [
            f"::notice title={_property(f'{case.name}: {finding.metric}')}::{_data(describe(finding))}"
            for finding in case.better
        ]
    return "\n".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
