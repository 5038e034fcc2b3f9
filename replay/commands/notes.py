"""What to know of a configuration, on standard error."""

from collections.abc import Iterable

from replay.support.names import say


def tell_notes(notes: Iterable[str]) -> None:
    """Each once."""
    for note in dict.fromkeys(notes):
        say(f"note: {note}", err=True)
