"""`replay doctor`: shows what works on this machine, and how to get the rest."""

import json
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

import typer

from replay.commands.options import AsJson
from replay.support.names import say

if TYPE_CHECKING:
    from replay.commands.doctor_checks import Check


def doctor(as_json: AsJson = False) -> None:
    """Check whether replay works on this machine, and say how to get what is missing.

    Simulates a workload and records a program as a trial. Exit code 0: both work. 1: one of them does not. Missing
    extras, such as real allocators to verify against, do not change it.

    Example: replay doctor

    Example: replay doctor --json
    """
    from replay.commands.compilation import report_compilation
    from replay.commands.doctor_checks import FAILED, all_checks

    with report_compilation():
        if as_json:
            checks = list(all_checks())
        else:
            checks = []
            for group, members in groupby(all_checks(), key=attrgetter("group")):
                say(group)
                for check in members:
                    checks.append(check)
                    _print(check)
    failed = [check for check in checks if check.state == FAILED]
    if as_json:
        say(json.dumps({"works": not failed, "checks": [check._asdict() for check in checks]}, indent=2))
    elif failed:
        say(f"{len(failed)} failed: {', '.join(f'{check.group} {check.name}' for check in failed)}")
    else:
        say("next: replay run web-service")
    if failed:
        raise typer.Exit(1)


def _print(check: "Check") -> None:
    """Prints a line for a check: green, yellow or red; and what to do, if it is not ok."""
    from rich.text import Text

    from replay.commands.doctor_checks import FAILED, MISSING, OK
    from replay.reports.console import PlainConsole

    style = {OK: "green", MISSING: "yellow", FAILED: "bold red"}[check.state]
    console = PlainConsole()
    console.print(Text.assemble("  ", (f"{check.state:<8}", style), f"{check.name:<12} {check.found}"), soft_wrap=True)
    if check.state != OK:
        console.print(Text(f"          {check.advice}"), soft_wrap=True)
