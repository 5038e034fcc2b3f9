"""Phases of a program, marked by itself; costs next to nothing where nobody records."""

import sys

_TAPS = ("_replay_tap", "replay.recorder.tap")
"""The module that holds the hooks, as the command and as the program itself brings it in."""


def mark(name: str) -> None:
    """Says that a phase of that name begins here. Does nothing unless this process is being recorded."""
    if not isinstance(name, str):
        raise TypeError(f"a phase has a name, which {name!r} is not")
    for module in _TAPS:
        if module in sys.modules:
            sys.modules[module].tap.mark(name)
