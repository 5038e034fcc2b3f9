"""`replay verify --libc`: compares the models of glibc and musl with real ones."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from replay.commands.compilation import report_compilation
from replay.commands.notes import print_notes
from replay.commands.verify_pymalloc import Cases
from replay.support.errors import ReplayError
from replay.support.names import say

if TYPE_CHECKING:
    from rich.table import Table

    from replay.verification.libc_compare import LibcAgreement
    from replay.verification.libc_oracles import LibcOracle


def verify_libc(make_cases: Callable[[], Cases], choice: str, env: list[str], *, resident: bool, as_json: bool) -> None:
    """Runs the cases with the chosen C libraries and with their models, and prints the differences."""
    from rich.text import Text

    from replay.config import load_config
    from replay.reports.console import PlainConsole
    from replay.verification.libc_compare import verify_libc as compare
    from replay.verification.libc_oracles import choose_libcs

    oracles = choose_libcs(choice)
    glibcs = [it for it in oracles if it.model == "glibc"]
    print_notes(note for it in glibcs for note in load_config(f"cpython-3.12-malloc-{it.name}", (), env).notes)
    if env and len(glibcs) < len(oracles):
        raise ReplayError("--env has settings of glibc; musl has none: choose a glibc with -a")
    results, cases = [], make_cases()
    with report_compilation(), PlainConsole(stderr=True).status("") as status:
        for oracle in oracles:
            for name, trace in cases:
                status.update(Text(f"{oracle.name}: {name}"))
                results.append((name, compare(trace, oracle, assignments=env, resident=resident)))
    exact = all(agreement.exact for _, agreement in results)
    if as_json:
        rows = [{"trace": name, "exact": it.exact, **asdict(it)} for name, it in results]
        say(json.dumps(rows, indent=2))
        raise typer.Exit(0 if exact else 1)
    PlainConsole().print(_table(oracles, results, resident))
    if not any(it.system_calls_compared for _, it in results):
        say("System calls were not compared: strace is not installed.")
    for name, agreement in results:
        if not agreement.exact:
            say(f"{agreement.oracle}, {name}: {agreement.difference}")
    raise typer.Exit(0 if exact else 1)


def _table(oracles: "list[LibcOracle]", results: "list[tuple[str, LibcAgreement]]", resident: bool) -> "Table":
    """Returns a table of the comparisons with each C library, 80 columns wide."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("real malloc", no_wrap=True)
    off = ["resident\noff"] if resident else []
    for heading in ("events", "addresses", "system\ncalls", "unequal", *off, "seconds"):
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
    return table


def list_libcs(as_json: bool) -> None:
    from replay.verification.libc_oracles import survey_libcs, survey_musls

    (oracles, absences), (musls, absent_musls) = survey_libcs(), survey_musls()
    oracles, absences = [*oracles, *musls], [*absences, *absent_musls]
    if as_json:
        found = [{"name": it.name, "version": it.version, "path": str(it.path)} for it in oracles]
        say(json.dumps({"at_hand": found, "missing": [asdict(it) for it in absences]}, indent=2))
        return
    say("Available:" if oracles else "No real C library is available.")
    for it in oracles:
        say(f"  {it.name:<12} -a {it.version if it.model == 'glibc' else it.name}\n      {it.path}")
    if absences:
        say("Not found on this machine:")
    for absence in absences:
        say(f"  {absence.name}: {absence.reason}")
