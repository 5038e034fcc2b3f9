"""`replay map`: draws the heap at one moment of a run."""

import json
import sys
from shlex import join
from typing import Annotated

import typer

from replay.commands import options
from replay.commands.compilation import report_compilation
from replay.commands.moments import At, parse_moment
from replay.commands.notes import print_notes
from replay.commands.run_plan import RunPlan, source_in_errors
from replay.support.errors import ReplayError
from replay.support.names import printable, say


def map_(
    source: options.Source,
    allocator: options.Allocator = None,
    at: At = "end",
    overrides: options.Fixed = None,
    env: options.Env = None,
    seed: options.Seed = None,
    full: Annotated[
        bool, typer.Option("--full", help="Draw every pool and every page, and list all mappings.")
    ] = False,
    play: Annotated[bool, typer.Option("--play", help="Animate the map over the run; Ctrl-C stops.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/map.md explains its keys.")] = False,
) -> None:
    """Draw the heap at one moment: which parts of it are live, free and resident.

    Arenas are rows of pools, the C library's heap is a strip of cells, and large blocks are lines.

    Example: replay map web-service --at peak
    """
    from replay.analysis.moments import memory_at

    if play and (as_json or at != "end" or not sys.stdout.isatty()):
        raise ReplayError("--play: needs a terminal, and neither --json nor --at; leave it out for one moment")
    plan = RunPlan.of(source, allocator, overrides, env, seed=seed, sample=None, trim_every=None)
    print_notes(plan.notes(may_differ=allocator is None))
    if play:
        from replay.commands.map_play import play_map

        play_map(plan)
        return
    moment = parse_moment(at, plan.trace.metadata.phases)
    with report_compilation(), source_in_errors(plan.source):
        processes = memory_at(plan.trace, plan.stack, moment)
    names = [process.name for process in plan.trace.metadata.processes] or [""]
    named = list(zip(names, processes, strict=True))
    if as_json:
        from replay.reports.heap_map import map_json

        say(json.dumps(map_json(named)))
        return
    from replay.reports.console import PlainConsole
    from replay.reports.heap_map import print_map
    from replay.reports.tables import WIDTH

    print_map(PlainConsole(width=None if sys.stdout.isatty() else WIDTH), plan.title, at, named, full=full)
    command = ["replay", "map", *plan.arguments, "--at", "end" if at == "peak" else "peak"]
    if not plan.trace.metadata.processes:
        command = ["replay", "pins", *plan.arguments, *(["--at", at] if at != "end" else [])]
    say(f"\nnext: {printable(join(command))}")
