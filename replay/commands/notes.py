"""What to know of a configuration, on standard error."""

from collections.abc import Iterable

import typer


def tell_notes(notes: Iterable[str]) -> None:
    """Each once."""
    for note in dict.fromkeys(notes):
        typer.echo(f"note: {note}", err=True)
