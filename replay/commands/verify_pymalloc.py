"""`replay verify`: compares the model of pymalloc with real ones."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from replay.commands.compilation import report_compilation
from replay.support.names import say

if TYPE_CHECKING:
    from replay.trace import Trace
    from replay.verification.compare import Agreement
    from replay.verification.oracles import Oracle

Cases = list[tuple[str, "Trace"]]
"""The cases by name."""


def verify_pymalloc(make_cases: Callable[[], Cases], choice: str, *, as_json: bool) -> None:
    """Runs the cases with the chosen real allocators and with their models, and prints the differences."""
    from replay.verification.compare import verify as compare
    from replay.verification.oracles import choose_oracles

    oracles = choose_oracles(choice)
    results: list[tuple[Oracle, str, Agreement]] = []
    from rich.text import Text

    from replay.reports.console import PlainConsole

    progress, cases = PlainConsole(stderr=True), make_cases()
    with report_compilation(), progress.status("") as status:
        for oracle in oracles:
            for name, trace in cases:
                status.update(Text(f"{oracle.name}: {name}"))
                results.append((oracle, name, compare(trace, oracle)))
    if as_json:
        say(json.dumps([{"trace": name, "exact": it.exact, **asdict(it)} for _, name, it in results], indent=2))
    else:
        _print_table(oracles, results)
    if not all(agreement.exact for _, _, agreement in results):
        if not as_json:
            _print_differences(results, cases)
        raise typer.Exit(1)


def _print_table(oracles: list["Oracle"], results: list[tuple["Oracle", str, "Agreement"]]) -> None:
    """Prints a table of the comparisons; `unequal` counts addresses, owners and arena events together."""
    from rich import box
    from rich.table import Table

    from replay.reports.console import PlainConsole

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
    PlainConsole().print(table)


def _print_differences(results: list[tuple["Oracle", str, "Agreement"]], cases: Cases) -> None:
    """Prints the first difference of each case, and a remark if the user's trace itself can be the reason."""
    from replay.allocators.glibc import MMAP_THRESHOLD

    for oracle, name, agreement in results:
        if not agreement.exact:
            say(f"{oracle.name}, {name}: {agreement.difference or agreement.arena_difference}")
    traces = [trace for _, trace in cases]
    if any(int(batch.size.max(initial=0)) >= MMAP_THRESHOLD for trace in traces for batch in trace.batches()):
        say(
            "The trace requests blocks of 128 KiB or more. libc maps them between the arenas if its heap has no "
            "room, and loading the library has used part of that heap. This can cause the difference; see --libc."
        )


def list_oracles(as_json: bool) -> None:
    from replay.verification.oracles import survey

    oracles, absences = survey()
    if as_json:
        found = [
            {"name": it.name, "preset": it.preset, "overrides": it.overrides, "path": str(it.library.path)}
            for it in oracles
        ]
        say(json.dumps({"at_hand": found, "missing": [asdict(it) for it in absences]}, indent=2))
        return
    say("Available:" if oracles else "No real allocator is available.")
    for it in oracles:
        with_overrides = "".join(f" --set {override}" for override in it.overrides)
        say(f"  {it.name:<22} -a {it.preset}{with_overrides}\n      {it.library.path}")
    if absences:
        say("Not found on this machine:")
    for absence in absences:
        say(f"  {absence.name}: {absence.reason}")
