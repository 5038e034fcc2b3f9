"""The reports of `replay check`: their formats, their files, and how they are written."""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from replay.gates.checking import Report

SCREEN = "-"


def parse_reports(options: list[str] | None, as_json: bool) -> list[tuple[str, str]]:
    """Returns pairs of format and file (`-` for standard output). Mistakes are reported before anything is measured."""
    from replay.reports.checks import check_format, expected_here

    if not options:
        return [] if as_json else [("text", SCREEN), *expected_here()]
    wanted = []
    for text in options:
        format_name, equals, file = text.partition("=")
        check_format(format_name, text)
        if equals and not file:
            raise ReplayError(f"--report {text}: the file's name is empty; leave out = to print the report")
        wanted.append((format_name, file or SCREEN))
    return wanted


def show_reports(report: "Report", wanted: list[tuple[str, str]], as_json: bool) -> None:
    """Prints or writes each of the reports."""
    from replay.reports.checks import render
    from replay.support.atomic_files import new_file

    if as_json:
        say(json.dumps(_as_json(report), indent=2))
    for format_name, file in wanted:
        rendered = render(format_name, report)
        if file == SCREEN:
            if rendered:
                say(rendered)
        elif file == os.environ.get("GITHUB_STEP_SUMMARY"):
            with Path(file).open("a", encoding="utf-8") as summary:  # other steps of the job append to it too
                summary.write(rendered)
        else:
            with new_file(file, force=True) as temporary:
                temporary.write_text(rendered + "\n", encoding="utf-8")


def _as_json(report: "Report") -> dict[str, Any]:
    cases = []
    for case in report.cases:
        findings = [{**asdict(each), "rule": str(each.rule), "failed": each.failed} for each in case.findings]
        findings = [
            {**each, **{key: each[key] and each[key].model_dump() for key in ("now", "before")}} for each in findings
        ]
        about = asdict(replace(case, findings=()))
        cases.append({**about, "findings": findings})
    return {"failed": report.failed, "cases": cases}
