"""`replay verify --objects`: compares the model of Python objects with real interpreters."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from replay.commands.compilation import report_compilation
from replay.support.names import say

if TYPE_CHECKING:
    from rich.table import Table

    from replay.verification.objects import ObjectAgreement


def verify_objects(source: str | None, choice: str, *, as_json: bool) -> None:
    """Runs object programs in the chosen interpreters and in the model, and prints the differences."""
    from pathlib import Path

    from rich.text import Text

    from replay.objects import load_objects
    from replay.reports.console import PlainConsole
    from replay.support.bundled_files import find_workload, object_program_names
    from replay.verification.object_oracles import choose_interpreters
    from replay.verification.objects import verify_objects as compare

    names = object_program_names() if source is None else [source]
    programs = [load_objects(Path(name) if Path(name).exists() else find_workload(name)) for name in names]
    results: list[ObjectAgreement] = []
    interpreters = choose_interpreters(choice)
    with report_compilation(), PlainConsole(stderr=True).status("") as status:
        for interpreter in interpreters:
            for program in programs:
                status.update(Text(f"{interpreter.name}: {program.name}"))
                results.append(compare(program, interpreter))
    if as_json:
        say(json.dumps([asdict(it) for it in results], indent=2))
    else:
        PlainConsole().print(_table(results))
        for it in results:
            if it.different:
                say(f"{it.interpreter}, {it.program}: {it.difference}")
    if any(it.different for it in results):
        raise typer.Exit(1)


def _table(results: "list[ObjectAgreement]") -> "Table":
    """Returns a table of the comparisons with each interpreter."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("interpreter", no_wrap=True)
    for heading in ("programs", "events", "left out", "different"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(it.interpreter for it in results):
        mine = [it for it in results if it.interpreter == name]
        sums = (len(mine), *(sum(getattr(it, key) for it in mine) for key in ("events", "aside", "different")))
        table.add_row(name, *(f"{value:,}" for value in sums))
    return table
