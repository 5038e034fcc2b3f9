"""Paths in the arguments of commands."""

from pathlib import Path

import typer

from replay.support.atomic_files import resolve_output
from replay.support.errors import OutputError


def parse_folder(text: str) -> Path:
    """Returns the path of a folder. Refuses an empty text (an unset variable), which would be the current folder."""
    if not text:
        raise typer.BadParameter("the name of the folder is missing; write . for the current folder")
    return Path(text)


def refuse_input_as_output(source: str | Path, output: Path, option: str) -> None:
    """Raises OutputError if the output is the file that is read."""
    if Path(source).exists() and resolve_output(output) == Path(source).resolve():
        raise OutputError(f"{option} {output}: is the input file; choose another name")
