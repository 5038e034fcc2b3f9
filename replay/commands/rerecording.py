"""A recording's requests are those of the interpreter that made it: a note where another version is simulated."""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import PurePath

from replay.support.names import by_version, printable

_INTERPRETER = re.compile(r"cpython (\d+\.\d+)")
_PRESET = re.compile(r"cpython-(\d+\.\d+)")


def requests_note(source: str, origin: Mapping[str, str], stacks: Iterable[str]) -> str | None:
    """The note, if the trace was recorded with another CPython than one of the stacks, told by name, is.

    With the command that records the program with the newest of the others, if that can be recorded.
    """
    from replay.recorder.tap import OLDEST

    recorded = _INTERPRETER.match(origin.get("interpreter", ""))
    presets = {match[1] for match in map(_PRESET.match, stacks) if match}
    if not recorded or not (others := sorted(presets - {recorded[1]}, key=by_version)):
        return None
    newest = others[-1]
    which = f"CPython {newest}" if len(others) == 1 else "other versions"
    note = (
        f"{printable(source)} was recorded with CPython {recorded[1]}; its requests are those of that version,\n"
        f"      and {which} would request other sizes"
    )
    if tuple(map(int, newest.split("."))) < OLDEST:
        return f"{note} (CPython {newest} cannot be recorded)"
    output = f"{PurePath(source).stem}-{newest}.parquet"
    command = ["replay", "record", "--python", f"python{newest}", "-o", output, *_program(origin)]
    return f"{note}. To record them:\n      {printable(shlex.join(command))}"


def _program(origin: Mapping[str, str]) -> list[str]:
    """The words behind `python` on the command line that was recorded; a placeholder where that is not known."""
    try:
        return shlex.split(origin["command"])[1:] or ["SCRIPT"]
    except (KeyError, ValueError):  # anybody may have written the origin
        return ["SCRIPT"]
