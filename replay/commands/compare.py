"""`replay compare`: shows how runs of several traces or stacks differ, and where the differences come from."""

import json
import sys
from shlex import join
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replay.commands import options
from replay.commands.compilation import report_compilation
from replay.commands.notes import print_notes
from replay.commands.rerecording import requests_note
from replay.commands.sweep_arguments import PlanArguments
from replay.support.errors import ReplayError
from replay.support.names import printable, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from replay.analysis.comparison import Case
    from replay.sweeps.space import Point


def compare(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE…", help="Traces, YAML workloads, or names of bundled workloads.")
    ],
    allocators: options.Allocators = None,
    fixed: options.Fixed = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="KEY=VALUES",
            help="Values of a key, e.g. pymalloc.alignment=8,16 or gc.threshold0=default,50000. Repeatable.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME=VALUES", help="Values of a variable of glibc, e.g. MALLOC_ARENA_MAX=default,1."
        ),
    ] = None,
    seed: options.Seed = None,
    no_attribution: Annotated[
        bool,
        typer.Option("--no-attribution", help="Skip the causes of the differences, which take more simulations."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; docs/comparing.md explains its keys.")] = False,
) -> None:
    """Show how runs of several traces or stacks differ, and where the differences come from.

    Example: replay compare web-service -a cpython-3.9,cpython-3.12
    """
    from replay.analysis.comparison import compare as compare_cases
    from replay.reports.comparison import CASES_MAX, comparison_json, print_comparison
    from replay.support.progress import progress_bar

    cases = _cases(sources, allocators, fixed, grid, env, seed)
    if len(cases) < 2:
        raise ReplayError("nothing to compare with; name another source, or stacks such as -a cpython-3.9,cpython-3.12")
    if len(cases) > CASES_MAX:
        raise ReplayError(f"{len(cases):,} runs are more than {CASES_MAX}; use `replay sweep`")
    print_notes(_notes(cases, may_differ=allocators is None))
    with report_compilation(), progress_bar("simulating", None) as progress:
        comparison = compare_cases(cases, attribute=not no_attribution, progress=progress)
    if as_json:
        say(json.dumps(comparison_json(comparison), indent=2))
        return
    from replay.reports.console import PlainConsole
    from replay.reports.tables import WIDTH

    width = None if sys.stdout.isatty() else max(WIDTH, 24 + 20 * len(cases))
    print_comparison(PlainConsole(width=width), comparison)
    last, settings = cases[-1], [word for text in fixed or () for word in ("--set", text)]
    seeds = [] if seed is None else ["--seed", str(seed)]
    command = ["replay", "run", last.source, "-a", last.stack.name, *settings, *last.options, *seeds]
    say(f"\nnext: {printable(join(command))}")


def _cases(
    sources: list[str],
    allocators: list[str] | None,
    fixed: list[str] | None,
    grid: list[str] | None,
    env: list[str] | None,
    seed: int | None,
) -> "list[Case]":
    """Returns each source with each stack and each setting of the collector. The default stack of a recording is that
    of the recorded process."""
    from replay.analysis.comparison import Case
    from replay.config.collector import collector_settings
    from replay.sources import open_source
    from replay.sweeps.configurations import Resolver, Skipped, impossible, point_text
    from replay.sweeps.space import ALLOCATOR, DEFAULT, TRIM_EVERY, points

    named = allocators or [DEFAULT]
    arguments = PlanArguments(
        plan=None, sources=None, seeds=None, fixed=fixed, allocators=named, grid=grid, env=env, random=None, latin=None,
        choose_seed=None, where=None, by=None, optimise=None, trim_every=None,
    )  # fmt: skip
    plan = arguments.to_plan()
    if TRIM_EVERY in {**plan.vary, **plan.fixed}:
        raise ReplayError(f"{TRIM_EVERY}: `replay sweep` takes it")
    collector_fixed, stack_fixed = _split(plan.fixed)
    collector_varied, stack_varied = _split(plan.vary)
    cases, traces = [], {source: open_source(source, seed=seed) for source in sources}
    for source in sources:
        trace = traces[source]
        resolver = Resolver(plan.model_copy(update={"fixed": stack_fixed, "vary": stack_varied}), [trace.metadata])
        for point in points({**resolver.space, **collector_varied}, plan.choose):
            of_collector, of_stack = _split(point)
            found = resolver.resolve(of_stack)
            if isinstance(found, Skipped):
                raise impossible(found)
            shown = {name: value for name, value in point.items() if name != ALLOCATOR}
            label = " ".join(filter(None, (source, found.stack.name, point_text({**plan.fixed, **shown}))))
            options = [word for name, text in _given(shown) for word in ("--set" if "." in name else "--env", text)]
            collector = collector_settings([text for _, text in _given({**collector_fixed, **of_collector})])
            cases.append(Case(label, source, trace, found.stack, tuple(options), collector))
    return cases


def _split(values: "Mapping[str, Any]") -> "tuple[dict[str, Any], dict[str, Any]]":
    """Returns the settings of the collector, and all others."""
    from replay.config.collector import is_of_collector

    own = {name: value for name, value in values.items() if is_of_collector(name)}
    return own, {name: value for name, value in values.items() if name not in own}


def _given(point: "Point") -> "Iterator[tuple[str, str]]":
    """Yields the name of each parameter that has a value, and `name=value`."""
    from replay.sweeps.configurations import setting_text
    from replay.sweeps.space import DEFAULT

    for name, value in point.items():
        if value != DEFAULT:
            yield name, setting_text(name, value)


def _notes(cases: "Sequence[Case]", *, may_differ: bool) -> "Iterator[str]":
    """Yields notes about each stack and the settings of the collector; with `may_differ`, also differences of the
    stacks from the recorded processes."""
    from replay.config import differences
    from replay.config.collector import as_options, collector_notes

    for case in cases:
        metadata = case.trace.metadata
        yield from case.stack.notes
        if as_options(case.collector) and metadata.collector:
            yield from collector_notes(case.collector, metadata.collector)
        if may_differ:
            yield from map(str, differences(metadata, case.stack))
    for source in dict.fromkeys(case.source for case in cases):
        of_source = [case for case in cases if case.source == source]
        origin = of_source[0].trace.metadata.origin
        if note := requests_note(source, origin, [case.stack.name for case in of_source]):
            yield note
