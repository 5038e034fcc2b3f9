"""The format `customSmallerIsBetter` of github-action-benchmark: a value for each case and metric."""

import json

from replay.gates.checking import Report


def render(report: Report) -> str:
    entries = []
    for case in report.cases:
        if case.name not in report.measured:
            continue
        figures = report.measured[case.name].figures
        for metric in dict.fromkeys(finding.metric for finding in case.findings):
            figure = figures.get(metric)
            if figure is None:
                continue
            unit = "bytes" if "_bytes" in metric else "ns" if "_ns" in metric else "count"
            spread = {"range": f"{figure.low:g} … {figure.high:g}"} if figure.spread else {}
            entries.append({"name": f"{case.name}: {metric}", "unit": unit, "value": figure.value, **spread})
    return json.dumps(entries, indent=2)
