"""Marks of phases in a program. They cost next to nothing if the program is not recorded."""

import sys

_TAPS = ("_replay_tap", "replay.recorder.tap")
"""The names of the module `tap`: in a program that `replay record` started, and in one that records itself."""


def mark(name: str) -> None:
    """Marks the start of a phase. Does nothing unless this process is being recorded."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a phase is a str, not {name!r}")
    for module in _TAPS:
        if module in sys.modules:
            sys.modules[module].tap.mark(name)
