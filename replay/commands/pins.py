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
from replay.commands.run_plan import RunPlan, source_in_errors
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.analysis.pin_report import PinReport


def pins(
    source: options.Source,
    allocator: options.Allocator = None,
    at: At = "end",
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="Simulate again without the blocks of call sites with this in function or file:line. Repeatable.",
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
    with report_compilation(), source_in_errors(source):
        report = find_pins(plan.trace, plan.stack, at=moment, without=without or ())
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
    settings = [*(plan.overrides or ()), *(plan.env or ())]
    print_pins(console, plan.source, plan.stack.name, at, report, settings=settings, full=full)


def _print_next(plan: RunPlan, report: "PinReport", at: str) -> None:
    """Prints the next command: the proof for the call sites that release most together, or how to get call sites."""
    from replay.analysis.block_groups import site_name
    from replay.analysis.removal import shortest_pattern

    stack = [plan.source, "-a", plan.chosen]
    for setting in plan.overrides or ():
        stack += ["--set", setting]
    for variable in plan.env or ():
        stack += ["--env", variable]
    if not report.by_size_class.groups:
        say(f"\nnext: {printable(join(['replay', 'run', *stack]))}")
        return
    command = ["replay", "pins", *stack, *(["--at", at] if at != "end" else [])]
    names = [site_name(site) for site in plan.trace.metadata.sites]
    best = [name for cover in report.by_site.cover[-1:] for name in cover.groups if name in names]
    if report.without or not best:
        say(f"\nnext: {printable(join([*command, '--full']))}")
        return
    patterns = [word for name in best for word in ("--without", shortest_pattern(name, names))]
    say(f"\nnext: {printable(join([*command, *patterns]))}")
