"""`replay pins`: shows which live blocks keep memory from being released, and who allocated them."""

import json
import sys
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import options
from replay.commands.compilation import report_compilation
from replay.commands.moments import At, parse_moment
from replay.commands.notes import print_notes
from replay.commands.run_plan import RunPlan
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.analysis.pin_report import PinReport


def pins(
    source: options.Source,
    allocator: options.Allocator = None,
    at: At = "end",
    without: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            help="Simulate again without the blocks of call sites with this in their function or file:line.",
        ),
    ] = None,
    overrides: options.Fixed = None,
    env: options.Env = None,
    seed: options.Seed = None,
    full: Annotated[bool, typer.Option("--full", help="Print all rows and tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/pins.md explains its keys.")] = False,
) -> None:
    """Show which live blocks keep memory from being released, and who allocated them.

    Example: replay pins app.parquet --at peak
    """
    from replay.analysis.pin_report import find_pins

    plan = RunPlan.of(source, allocator, overrides, env, seed=seed, sample=None, trim_every=None)
    print_notes(plan.notes(may_differ=allocator is None))
    moment = parse_moment(at, plan.trace.metadata.phases)
    with report_compilation():
        report = find_pins(plan.trace, plan.stack, at=moment, without=without)
    if as_json:
        from replay.reports.pins import pins_json

        say(json.dumps(pins_json(report), indent=2))
        return
    _print_text(plan, report, at, full)
    if not report.has_sites and plan.trace.metadata.origin.cpython_version:
        say("\nThe trace has no call sites. Record it with: replay record --sites")
    _print_next(plan, report, at)


def _print_text(plan: RunPlan, report: "PinReport", at: str, full: bool) -> None:
    from replay.reports.console import PlainConsole
    from replay.reports.pins import print_pins
    from replay.reports.tables import WIDTH

    console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
    print_pins(console, plan.source, plan.stack.name, at, report, full=full)


def _print_next(plan: RunPlan, report: "PinReport", at: str) -> None:
    """Prints the next command: the proof for the call site that pins most, or how to get call sites."""
    command = ["replay", "pins", plan.source, "-a", plan.chosen]
    for setting in plan.overrides or ():
        command += ["--set", setting]
    for variable in plan.env or ():
        command += ["--env", variable]
    command += ["--at", at] if at != "end" else []
    first = next((group for group in report.by_site.groups if group.pinned_bytes and "(" in group.name), None)
    if report.without or not report.has_sites or first is None:
        say(f"\nnext: {printable(join([*command, '--full']))}")
        return
    place = first.name.rpartition("/")[2] if "/" in first.name else first.name.rpartition("(")[2]
    say(f"\nnext: {printable(join([*command, '--without', place.rstrip(')')]))}")
