"""`replay run`: a trace or workload through an allocator stack, and what it cost."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import options
from replay.commands.compilation import told_compilation
from replay.commands.notes import tell_notes
from replay.commands.parallel_compilation import CEILING, FLOOR, Elsewhere
from replay.commands.paths import parse_folder, refuse_input_as_output
from replay.commands.rerecording import requests_note
from replay.support.atomic_files import resolve_output
from replay.support.errors import OutputError, ReplayError, TraceError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from replay.analysis.metrics import Summary
    from replay.config import StackConfig
    from replay.reports.files import AddressWriter
    from replay.simulation.result import RunResult
    from replay.trace import Trace


def run(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Trace, YAML workload, or name of a bundled workload.")
    ],
    allocator: Annotated[
        str | None,
        typer.Option(
            "-a",
            "--allocator",
            metavar="PRESET",
            help="Preset or YAML file. Default: the interpreter that recorded the trace, else the running Python.",
        ),
    ] = None,
    overrides: options.Fixed = None,
    env: options.Env = None,
    trim_every: options.TrimEvery = None,
    sample: Annotated[
        str | None, typer.Option(metavar="TIME", help="Sampling interval, e.g. 10ms. Default: about 1,000 samples.")
    ] = None,
    seed: options.Seed = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print all tables: layers, arenas, calls, size classes, phases.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/metrics.md explains its keys.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", parser=parse_folder, help="Folder for summary.json and the tables as Parquet."),
    ] = None,
    addresses: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file for the address of every block.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing results.")] = False,
    no_reference: Annotated[
        bool,
        typer.Option("--no-reference", help="Skip the references ideal and bump, which take two more simulations."),
    ] = False,
) -> None:
    """Simulate a trace or workload with an allocator stack, and report its memory use.

    Example: replay run web-service -a cpython-3.9 --set pymalloc.arena_size='1 MiB'
    """
    from replay.analysis.metrics import summarize
    from replay.config import default_preset, differences, load_config
    from replay.reports.files import new_address_file, new_folder, summary_json, write_results
    from replay.sources import open_source

    every_ns, trim_every_ns = _parse_interval("--sample", sample), _parse_interval("--trim-every", trim_every)
    trace = open_source(source, seed=seed)
    chosen = default_preset(trace.metadata) if allocator is None else allocator
    stacks = [load_config(chosen, overrides or (), env or ())]
    tell_notes(stacks[0].notes)
    if allocator is None:
        tell_notes(map(str, differences(trace.metadata, stacks[0])))
    if not no_reference:
        stacks += [load_config(FLOOR), load_config(CEILING)]
    if note := requests_note(source, trace.metadata.origin, [stacks[0].name]):
        tell_notes([note])
    _refuse_collisions(source, out, addresses)
    with ExitStack() as outputs:
        folder = outputs.enter_context(new_folder(out, force=force)) if out else None
        sink = outputs.enter_context(new_address_file(addresses, force=force)) if addresses else None
        elsewhere = outputs.enter_context(Elsewhere())
        meanwhile = elsewhere.begin if len(stacks) > 1 else None
        with told_compilation(meanwhile) as compilation, _named(source):
            results = _play_all(trace, stacks, every_ns, trim_every_ns, sink, elsewhere)
        result = results[0]
        assert result is not None
        floor, ceiling = results[1:] or (None, None)
        summary = summarize(result, floor=floor, ceiling=ceiling)
        if folder:
            write_results(folder, result, summary)
    if as_json:
        say(summary_json(result, summary))
    else:
        _print_text(source, result, summary, [*(overrides or ()), *(env or ())], full, compilation.happened)
        of_any, of_this = _options(trim_every=trim_every, seed=seed), _options(set=overrides, env=env)
        same = [source, "-a", chosen, *of_this, *of_any]
        other = "cpython-3.12" if chosen == "cpython-3.8" else "cpython-3.8"
        if out:
            following = [source, "-a", other, *of_any]
        else:
            following = [*same, "--out", "results"] if full else [*same, "--full"]
        _print_closing(following, out, addresses)


def _parse_interval(option: str, text: str | None) -> int | None:
    """Nanoseconds; None if nothing is said."""
    from replay.support.units import parse_time

    try:
        interval_ns = None if text is None else parse_time(text)
    except ValueError as mistake:
        raise ReplayError(f"{option}: {mistake}") from None
    if interval_ns == 0:
        raise ReplayError(f"{option}: the interval must be longer than nothing; write it like 10ms")
    return interval_ns


def _refuse_collisions(source: str, out: Path | None, addresses: Path | None) -> None:
    """No output may take the place of the input, or of another output of the same run."""
    if addresses:
        refuse_input_as_output(source, addresses, "--addresses")
    if addresses and out and resolve_output(out) in (file := resolve_output(addresses), file.parent):
        raise OutputError(f"--addresses {addresses}: lies in the folder of --out; choose another one")


@contextmanager
def _named(source: str) -> Iterator[None]:
    """The engine knows rows, but no files."""

    try:
        yield
    except TraceError as error:
        if error.path is not None:
            raise
        raise TraceError(error.what, path=source, row=error.row) from error


def _play_all(
    trace: "Trace",
    configs: list["StackConfig"],
    every_ns: int | None,
    trim_every_ns: int | None,
    sink: "AddressWriter | None",
    elsewhere: Elsewhere,
) -> list["RunResult | None"]:
    """The trace through each stack, None where a reference cannot hold it; samples and addresses are the first's."""
    from replay.simulation.run import NO_SAMPLES_NS, run
    from replay.support.progress import progress_bar

    results: list[RunResult | None] = []
    events_before = 0
    total = None if trace.events_total is None else len(configs) * trace.events_total
    with progress_bar("playing", total) as progress:

        def show(rows: int) -> None:
            progress(events_before + rows)

        for config in configs:
            try:
                result = run(
                    trace,
                    config,
                    sample_every_ns=every_ns,
                    trim_every_ns=trim_every_ns,
                    addresses=sink,
                    progress=show,
                )
            except TraceError:
                if not results:
                    raise
                results.append(None)  # what the stack could hold, a reference that never frees need not
                continue
            results.append(result)
            events_before += result.events
            every_ns, sink = NO_SAMPLES_NS, None
            elsewhere.wait()
    return results


def _print_text(
    source: str, result: "RunResult", summary: "Summary", settings: list[str], full: bool, compiled: bool
) -> None:
    from replay.reports.console import PlainConsole
    from replay.reports.tables import WIDTH
    from replay.reports.text import print_report

    console = PlainConsole(width=None if sys.stdout.isatty() else WIDTH)
    print_report(console, source, result, summary, settings=settings, full=full)
    seconds = result.wall_ns / 1e9
    rate = f", {result.events / seconds:,.0f} events/s" if seconds and not compiled else ""
    say(f"\n{result.events:,} events in {seconds:.2f} s{', compiling included' if compiled else rate}")


def _print_closing(following: list[str], out: Path | None, addresses: Path | None) -> None:
    """Prints what was written, and the next command."""
    if written := [printable(str(path)) for path in (out, addresses) if path]:
        say(f"written: {', '.join(written)}")
    say(f"next: replay run {printable(join(following))}")


def _options(**values: list[str] | str | int | None) -> list[str]:
    """The words that say these options on a command line."""
    said = ((name, value) for name, value in values.items() if value is not None)
    each = ((name, one) for name, value in said for one in (value if isinstance(value, list) else [value]))
    return [word for name, one in each for word in (f"--{name.replace('_', '-')}", str(one))]
