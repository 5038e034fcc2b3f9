"""`replay run`: simulates a trace or workload with an allocator stack and reports its memory use."""

import sys
from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from replay.commands import options
from replay.commands.notes import print_notes
from replay.commands.paths import parse_folder
from replay.commands.run_plan import RunOutputs, RunPlan, Simulated
from replay.support.names import printable, say


def run(
    source: options.Source,
    allocator: options.Allocator = None,
    overrides: options.Fixed = None,
    env: options.Env = None,
    trim_every: options.TrimEvery = None,
    sample: options.Sample = None,
    seed: options.Seed = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print all tables: layers, arenas, calls, size classes, phases.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/metrics.md explains its keys.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=parse_folder, help="Folder for summary.json and the tables as Parquet. Default: none."
        ),
    ] = None,
    addresses: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file for the address of every block.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing results.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show levels, speed and time left during the simulation, on a terminal.")
    ] = False,
    no_reference: Annotated[
        bool,
        typer.Option(
            "--no-reference",
            help="Skip the comparison with the models ideal and bump, which takes two more simulations.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Check the invariants of the models after each slice of the trace. Slower."),
    ] = False,
) -> None:
    """Simulate a trace or workload with an allocator stack, and report its memory use.

    Example: replay run web-service -a cpython-3.9 --set pymalloc.arena_size='1 MiB'
    """
    from replay.reports.files import summary_json

    plan = RunPlan.of(source, allocator, overrides, env, seed=seed, sample=sample, trim_every=trim_every)
    print_notes(plan.notes(may_differ=allocator is None))
    outputs = RunOutputs(out, addresses, force)
    outputs.refuse_collisions(source)
    if watch and not sys.stdout.isatty():
        print_notes(["--watch needs a terminal, so it is ignored"])
        watch = False
    done = plan.simulate(outputs, with_references=not no_reference, watched=watch, check=check)
    if as_json:
        say(summary_json(done.result, done.summary, done.extra))
        return
    _print_text(plan, done, full)
    _print_closing(_next_words(plan, out, full), out, addresses)


def _next_words(plan: RunPlan, out: Path | None, full: bool) -> list[str]:
    """Returns the command line that is suggested next: the run with all tables or files, or with another allocator."""
    of_any = _options(trim_every=plan.trim_every, seed=plan.seed)
    if out:
        other = "cpython-3.12" if plan.chosen == "cpython-3.13" else "cpython-3.13"
        return [plan.source, "-a", other, *of_any]
    same = [plan.source, "-a", plan.chosen, *_options(set=plan.overrides, env=plan.env), *of_any]
    return [*same, "--out", "results"] if full else [*same, "--full"]


def _print_text(plan: RunPlan, done: Simulated, full: bool) -> None:
    from replay.reports.console import PlainConsole
    from replay.reports.tables import WIDTH, labelled
    from replay.reports.text import print_report

    console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
    settings = [*(plan.overrides or ()), *(plan.env or ())]
    print_report(
        console, plan.source, done.result, done.summary,
        settings=settings, live=done.live, forks=done.forks, full=full,
    )  # fmt: skip
    if done.what_if:
        text = labelled(done.what_if.label, done.what_if.sentence, min(console.width, WIDTH))
        console.print(text, soft_wrap=True)
    seconds = done.result.wall_ns / 1e9
    rate = f", {done.result.events / seconds:,.0f} events/s" if seconds and not done.compiled else ""
    say(f"\nsimulated in {seconds:.2f} s{', compiling included' if done.compiled else rate}")


def _print_closing(following: list[str], out: Path | None, addresses: Path | None) -> None:
    """Prints what was written, and the next command."""
    if written := [printable(str(path)) for path in (out, addresses) if path]:
        say(f"written: {', '.join(written)}")
    say(f"next: replay run {printable(join(following))}")


def _options(**values: list[str] | str | int | None) -> list[str]:
    """Returns these options as arguments of a command line."""
    given = ((name, value) for name, value in values.items() if value is not None)
    pairs = ((name, one) for name, value in given for one in (value if isinstance(value, list) else [value]))
    return [word for name, one in pairs for word in (f"--{name.replace('_', '-')}", str(one))]
