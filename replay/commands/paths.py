"""Paths as commands take them."""

from pathlib import Path

import typer

from replay.support.atomic_files import resolve_output
from replay.support.errors import OutputError


def parse_folder(text: str) -> Path:
    """A folder's name; an empty one is that of a variable which nobody set, and not the folder at hand."""
    if not text:
        raise typer.BadParameter("no folder is named; write . for the one at hand")
    return Path(text)


def refuse_input_as_output(source: str | Path, output: Path, option: str) -> None:
    """What is read must not be written over."""
    if Path(source).exists() and resolve_output(output) == Path(source).resolve():
        raise OutputError(f"{option} {output}: is what is read; choose another name")
