"""Notes about a configuration, on standard error."""

from collections.abc import Iterable

from replay.support.names import say


def print_notes(notes: Iterable[str]) -> None:
    """Prints each note once."""
    for note in dict.fromkeys(notes):
        say(f"note: {note}", err=True)
