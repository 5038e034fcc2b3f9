"""Paths as commands take them."""

from pathlib import Path

import typer

from replay.support.atomic_files import resolve_output
from replay.support.errors import OutputError


def parse_folder(text: str) -> Path:
    """The path of a folder. An empty text, as of an unset variable, is refused: it would be the current folder."""
    if not text:
        raise typer.BadParameter("no folder is named; write . for the current folder")
    return Path(text)


def refuse_input_as_output(source: str | Path, output: Path, option: str) -> None:
    """What is read must not be written over."""
    if Path(source).exists() and resolve_output(output) == Path(source).resolve():
        raise OutputError(f"{option} {output}: is what is read; choose another name")
