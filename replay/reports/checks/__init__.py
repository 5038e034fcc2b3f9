"""The verdict of a check in several formats: one module each, with `render(report) -> str`."""

import os
from importlib import import_module

from replay.gates.checking import Report
from replay.support.errors import ReplayError
from replay.support.names import nearest

FORMATS = ("text", "markdown", "github", "gitlab", "junit", "benchmark")


def check_format(name: str, option: str) -> None:
    """Raises ReplayError if no format has this name. `option`: the value of the option that has it."""
    if name not in FORMATS:
        raise ReplayError(f"--report {option}: unknown format; {nearest(name, FORMATS)}")


def render(name: str, report: Report) -> str:
    """Returns the report in the named format."""
    check_format(name, name)
    rendered: str = import_module(f"{__name__}.{name}").render(report)
    return rendered


def expected_here() -> list[tuple[str, str]]:
    """Returns the default formats and files of this environment (`-` for standard output)."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        return [("github", "-"), *([("markdown", summary)] if summary else [])]
    if os.environ.get("GITLAB_CI") == "true":
        return [("gitlab", "gl-code-quality-report.json")]
    return []
