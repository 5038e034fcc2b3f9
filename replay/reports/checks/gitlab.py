"""GitLab's code quality report: a JSON list with an entry for each finding."""

import hashlib
import json

from replay.gates.checking import Report
from replay.reports.checks.sentences import causes, describe


def render(report: Report) -> str:
    entries = []
    for case in report.cases:
        findings = [(finding.metric, describe(finding)) for finding in case.worse]
        if case.failed and not findings:
            findings = [(case.state, case.note)]
        for metric, description in findings:
            entries.append(
                {
                    "check_name": f"replay: {metric}",
                    "description": "; ".join([f"{case.name}: {metric}: {description}", *causes(case)]),
                    "fingerprint": hashlib.sha256(f"{case.name}\0{metric}".encode()).hexdigest(),
                    "severity": "major",
                    "location": {"path": case.origin or case.name, "lines": {"begin": 1}},
                }
            )
    return json.dumps(entries, indent=2)
