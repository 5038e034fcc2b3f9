"""`replay workloads`: the workloads that come with replay."""

import ast
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from replay.commands.options import AsJson
from replay.support.names import say


@dataclass(frozen=True)
class _Listed:
    name: str
    description: str
    duration_ns: int | None
    recorded: bool


def workloads(as_json: AsJson = False) -> None:
    """List the bundled workloads: YAML descriptions, object programs and recordings.

    Example: replay workloads --json
    """
    found = [*_from_yaml(), *_object_programs(), *_recordings()]
    if as_json:
        say(json.dumps([asdict(it) for it in found], indent=2))
        return
    from rich.table import Table

    from replay.reports.console import PlainConsole

    table = Table("workload", "description", box=None)
    for it in found:
        table.add_row(it.name, f"Recorded. {it.description}" if it.recorded else it.description)
    PlainConsole().print(table)
    say("next: replay run web-service")


def _from_yaml() -> Iterator[_Listed]:
    from replay.support.bundled_files import find_workload, workload_names
    from replay.workload import load_workload

    for name in workload_names():
        workload = load_workload(find_workload(name))
        yield _Listed(name, workload.description, workload.duration, recorded=False)


def _object_programs() -> Iterator[_Listed]:
    from replay.objects import load_objects
    from replay.support.bundled_files import find_workload, object_program_names

    for name in object_program_names():
        description = load_objects(find_workload(name)).program.description
        yield _Listed(name, f"Object program. {description}", None, recorded=False)


def _recordings() -> Iterator[_Listed]:
    """Yields the bundled recordings; a description is the docstring of the recorded program."""
    from replay.sources.parquet import open_trace
    from replay.support.bundled_files import find_program, find_workload, recorded_names

    for name in recorded_names():
        says = ast.get_docstring(ast.parse(find_program(name).read_text("utf-8"))) or ""
        yield _Listed(name, " ".join(says.split()), open_trace(find_workload(name)).duration_ns, recorded=True)
