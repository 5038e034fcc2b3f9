"""`replay workloads`: the workloads that come with replay."""

import json
from typing import Annotated

import typer


def workloads(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs to read.")] = False,
) -> None:
    """List the bundled workloads and what they are like in the wild.

    Example: replay workloads --json
    """
    from replay.resources import find_workload, workload_names
    from replay.workload import load_workload

    found = {name: load_workload(find_workload(name)) for name in workload_names()}
    if as_json:
        rows = [{"name": name, "description": it.description, "duration_ns": it.duration} for name, it in found.items()]
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("workload", "what it is like", box=None)
    for name, it in found.items():
        table.add_row(name, it.description)
    Console().print(table)
    typer.echo("next: replay run web-service")
