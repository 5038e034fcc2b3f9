"""`replay verify`: the models against the real allocators of this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands.compilation import told_compilation
from replay.errors import ReplayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.trace import Trace
    from replay.verification.compare import Agreement
    from replay.verification.oracles import Oracle


def verify(
    source: Annotated[
        str | None, typer.Argument(help="Trace or YAML workload to play; without it, built-in hard cases.")
    ] = None,
    preset: Annotated[
        str, typer.Option("--allocator", "-a", metavar="PRESET", help="A preset, a version such as 3.11, or all.")
    ] = "all",
    events: Annotated[int, typer.Option(min=1, help="Length of each built-in case.")] = 100_000,
    seed: Annotated[int, typer.Option(help="Seed of the built-in cases.")] = 0,
    libc: Annotated[
        bool, typer.Option("--libc", help="Verify glibc instead of pymalloc; -a then takes its version, like 2.36.")
    ] = False,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME=VALUE", help="With --libc: run both with this setting, like MALLOC_TOP_PAD_=0."
        ),
    ] = None,
    resident: Annotated[
        bool, typer.Option("--resident", help="With --libc: compare resident memory too, at ten points of each trace.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Say which real allocators are at hand, and stop.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Play traces through real allocators and through their models, and compare address by address.

    Exit code 0: all equal. 1: there is a difference. 2: something could not be run.

    Example: replay verify -a cpython-3.11

    Example: replay verify --libc -a 2.36 --env MALLOC_MMAP_THRESHOLD_=65536
    """
    if not libc and (env or resident):
        raise ReplayError("--env and --resident go with --libc")
    if list_:
        _list_libcs(json_) if libc else _list_oracles(json_)
        return
    if libc:
        _verify_libc(source, preset, events, seed, env or [], resident=resident, as_json=json_)
        return
    from replay.verification.compare import verify as compare
    from replay.verification.oracles import choose_oracles

    oracles = choose_oracles(preset)
    cases = list(_cases(source, events, seed, "shapes"))
    results: list[tuple[Oracle, str, Agreement]] = []
    from rich.console import Console

    progress = Console(stderr=True)
    with told_compilation(), progress.status("") as status:
        for oracle in oracles:
            for name, trace in cases:
                status.update(f"{oracle.name}: {name}")
                results.append((oracle, name, compare(trace, oracle)))
    if json_:
        typer.echo(json.dumps([{"trace": name, "exact": it.exact, **asdict(it)} for _, name, it in results], indent=2))
    else:
        _print_table(oracles, results)
    if not all(agreement.exact for _, _, agreement in results):
        if not json_:
            _print_differences(results, cases)
        raise typer.Exit(1)


def _cases(source: str | None, events: int, seed: int, builtin: str) -> Iterator[tuple[str, Trace]]:
    """What to play, by name."""
    if source is not None:
        from replay.sources import open_source

        yield source, open_source(source)
        return
    shapes = import_module(f"replay.verification.{builtin}")
    for name in shapes.SHAPES:
        yield name, shapes.build_shape(name, events, seed)


def _print_table(oracles: list[Oracle], results: list[tuple[Oracle, str, Agreement]]) -> None:
    """What was compared, and how much of it is unequal (addresses, owners and arena events together)."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("real allocator", no_wrap=True)
    for heading in ("events", "addresses", "arenas", "releases", "unequal", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for oracle in oracles:
        mine = [agreement for owner, _, agreement in results if owner is oracle]
        table.add_row(
            oracle.name,
            f"{sum(it.events for it in mine):,}",
            f"{sum(it.addresses_compared for it in mine):,}",
            f"{sum(it.arena_events_compared for it in mine):,}",
            f"{sum(it.releases for it in mine):,}",
            f"{sum(it.unequal for it in mine):,}",
            f"{sum(it.seconds for it in mine):.2f}",
        )
    Console().print(table)


def _print_differences(results: list[tuple[Oracle, str, Agreement]], cases: list[tuple[str, Trace]]) -> None:
    """The first difference of each pair that disagrees, and why a trace of the user's own may be to blame."""
    from replay.allocators.glibc import MMAP_THRESHOLD

    for oracle, name, agreement in results:
        if not agreement.exact:
            typer.echo(f"{oracle.name}, {name}: {agreement.difference or agreement.arena_difference}")
    traces = [trace for _, trace in cases]
    if any(int(batch.size.max(initial=0)) >= MMAP_THRESHOLD for trace in traces for batch in trace.batches()):
        typer.echo(
            "The trace asks for blocks of 128 KiB or more, which libc maps among the arenas where its heap has no "
            "room. Loading the library leaves that heap in use, so a difference can come from there; see --libc."
        )


def _verify_libc(
    source: str | None, choice: str, events: int, seed: int, env: list[str], *, resident: bool, as_json: bool
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from replay.verification.libc_compare import verify_libc
    from replay.verification.libc_oracles import choose_libcs

    oracles = choose_libcs(choice)
    cases = list(_cases(source, events, seed, "libc_shapes"))
    results = []
    with told_compilation(), Console(stderr=True).status("") as status:
        for oracle in oracles:
            for name, trace in cases:
                status.update(f"{oracle.name}: {name}")
                results.append((name, verify_libc(trace, oracle, assignments=env, resident=resident)))
    exact = all(agreement.exact for _, agreement in results)
    if as_json:
        rows = [{"trace": name, "exact": it.exact, **asdict(it)} for name, it in results]
        typer.echo(json.dumps(rows, indent=2))
        raise typer.Exit(0 if exact else 1)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("real malloc", no_wrap=True)
    for heading in ("events", "addresses", "system calls", "unequal", *("resident off",) * resident, "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for oracle in oracles:
        mine = [it for _, it in results if it.oracle == oracle.name]
        table.add_row(
            oracle.name,
            f"{sum(it.events for it in mine):,}",
            f"{sum(it.addresses_compared for it in mine):,}",
            f"{sum(it.system_calls_compared for it in mine):,}",
            f"{sum(it.unequal for it in mine):,}",
            *(f"{max(it.resident_error or 0.0 for it in mine):.2%}",) * resident,
            f"{sum(it.seconds for it in mine):.2f}",
        )
    Console().print(table)
    if not any(it.system_calls_compared for _, it in results):
        typer.echo("System calls were not compared: strace is not installed.")
    for name, agreement in results:
        if not agreement.exact:
            typer.echo(f"{agreement.oracle}, {name}: {agreement.difference}")
    raise typer.Exit(0 if exact else 1)


def _list_libcs(as_json: bool) -> None:
    from replay.verification.libc_oracles import survey_libcs

    oracles, absences = survey_libcs()
    if as_json:
        found = [{"name": it.name, "version": it.version, "path": str(it.path)} for it in oracles]
        typer.echo(json.dumps({"at_hand": found, "missing": [asdict(it) for it in absences]}, indent=2))
        return
    typer.echo("At hand:" if oracles else "No real glibc is at hand.")
    for it in oracles:
        typer.echo(f"  {it.name:<12} -a {it.version}\n      {it.path}")
    if absences:
        typer.echo("Not at hand:")
    for absence in absences:
        typer.echo(f"  {absence.name}: {absence.reason}")


def _list_oracles(as_json: bool) -> None:
    from replay.verification.oracles import survey

    oracles, absences = survey()
    if as_json:
        found = [
            {"name": it.name, "preset": it.preset, "overrides": it.overrides, "path": str(it.library.path)}
            for it in oracles
        ]
        typer.echo(json.dumps({"at_hand": found, "missing": [asdict(it) for it in absences]}, indent=2))
        return
    typer.echo("At hand:" if oracles else "No real allocator is at hand.")
    for it in oracles:
        with_overrides = "".join(f" --set {override}" for override in it.overrides)
        typer.echo(f"  {it.name:<22} -a {it.preset}{with_overrides}\n      {it.library.path}")
    if absences:
        typer.echo("Not at hand:")
    for absence in absences:
        typer.echo(f"  {absence.name}: {absence.reason}")
