"""`replay export`: simulates a trace, and writes the results for other programs."""

import json
import pickle
from enum import StrEnum
from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from replay.commands import options
from replay.commands.compilation import report_compilation
from replay.commands.moments import OptionalAt, parse_moment
from replay.commands.notes import print_notes
from replay.commands.paths import refuse_input_as_output
from replay.commands.run_plan import RunPlan, source_in_errors
from replay.support.errors import ReplayError
from replay.support.names import printable, say


class Format(StrEnum):
    """What can be written."""

    PERFETTO = "perfetto"
    SPEEDSCOPE = "speedscope"
    MEMORY_VIZ = "memory_viz"
    CSV = "csv"
    PARQUET = "parquet"


_OF_A_MOMENT = (Format.SPEEDSCOPE, Format.MEMORY_VIZ)
_TABLES = (Format.CSV, Format.PARQUET)
_OPENED_BY = {
    Format.PERFETTO: "open {} in https://ui.perfetto.dev",
    Format.SPEEDSCOPE: "open {} in https://www.speedscope.app",
    Format.MEMORY_VIZ: "open {} in https://pytorch.org/memory_viz, view Allocator State History",
}


def export(
    source: options.Source,
    to: Annotated[
        Format, typer.Option("--to", metavar="FORMAT", help="perfetto, speedscope, memory_viz, csv, parquet.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="File to write; for csv and parquet, a folder.")
    ],
    allocator: options.Allocator = None,
    at: OptionalAt = None,
    overrides: options.Fixed = None,
    env: options.Env = None,
    sample: options.Sample = None,
    seed: options.Seed = None,
    force: options.Force = False,
) -> None:
    """Simulate a trace or workload, and write the results for another program.

    The whole run: perfetto has levels, phases and garbage collections over time; csv and parquet have the tables of
    docs/metrics.md. One moment (--at): speedscope has live and pinned bytes by call site, and memory_viz all blocks.

    Example: replay export web-service --to perfetto -o trace.json
    """
    if at is not None and to not in _OF_A_MOMENT:
        raise ReplayError(f"--at {at}: {to} has the whole run; leave --at out")
    refuse_input_as_output(source, output, "-o")
    plan = RunPlan.of(source, allocator, overrides, env, seed=seed, sample=sample, trim_every=None)
    print_notes(plan.notes(may_differ=allocator is None))
    if to in _TABLES:
        _write_tables(plan, output, f".{to}", force)
    else:
        _write_file(plan, to, at or "end", output, force)
    shown = printable(str(output))
    say(f"written: {shown}")
    if to in _OPENED_BY:
        say(f"next: {_OPENED_BY[to].format(shown)}")
    else:
        say(f"next: {printable(join(['replay', 'run', *plan.arguments, '--full']))}")


def _write_tables(plan: RunPlan, folder: Path, suffix: str, force: bool) -> None:
    from replay.reports.files import new_folder, table_names, write_tables

    with new_folder(folder, table_names(suffix), force=force) as temporary:
        write_tables(temporary, plan.run(), suffix)


def _write_file(plan: RunPlan, to: Format, at: str, output: Path, force: bool) -> None:
    from replay.support.atomic_files import new_file

    content = {Format.PERFETTO: _perfetto, Format.SPEEDSCOPE: _speedscope, Format.MEMORY_VIZ: _memory_viz}[to]
    with new_file(output, force=force) as temporary:
        temporary.write_bytes(content(plan, at))


def _perfetto(plan: RunPlan, at: str) -> bytes:
    from replay.reports.exports.perfetto import trace_events

    return _as_json(trace_events(plan.run(), plan.title))


def _speedscope(plan: RunPlan, at: str) -> bytes:
    from replay import __version__
    from replay.analysis.moments import memory_at
    from replay.analysis.pin_report import find_pins
    from replay.reports.exports.speedscope import profiles

    sites = plan.trace.metadata.sites
    if not sites:
        raise ReplayError(f"{plan.source}: has no call sites for speedscope; record it with: replay record --sites")
    moment = parse_moment(at, plan.trace.metadata.phases)
    with report_compilation(), source_in_errors(plan.source):
        report = find_pins(plan.trace, plan.stack, at=moment)
        (memory,) = memory_at(plan.trace, plan.stack, moment, with_blocks=True)
    assert memory.blocks is not None
    return _as_json(profiles(report, memory.blocks, sites, f"{plan.title}, at {at}", f"replay {__version__}"))


def _memory_viz(plan: RunPlan, at: str) -> bytes:
    from replay.analysis.moments import memory_at
    from replay.reports.exports.memory_viz import PROTOCOL, snapshot

    moment = parse_moment(at, plan.trace.metadata.phases)
    with report_compilation(), source_in_errors(plan.source):
        processes = memory_at(plan.trace, plan.stack, moment, with_blocks=True)
    return pickle.dumps(snapshot(processes, plan.trace.metadata.sites), PROTOCOL)


def _as_json(content: dict[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
