"""Notes for recordings that are simulated with another CPython than the one that made the requests."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING

from replay.support.names import by_version, printable

if TYPE_CHECKING:
    from replay.sweeps.plan import Plan
    from replay.sweeps.results import Results
    from replay.trace import Provenance

_PRESET = re.compile(r"cpython-(\d+\.\d+)")


def requests_note(source: str, origin: "Provenance", stacks: Iterable[str]) -> str | None:
    """Returns a note if the name of a stack has another CPython version than the trace; else None.

    The note of a recording has the command that records the program with the newest of these versions, if replay can
    record it. That of an object program says what to edit.
    """
    from replay.recorder.tap import OLDEST

    recorded = origin.cpython_version or origin.python
    presets = {match[1] for match in map(_PRESET.match, stacks) if match}
    if not recorded or not (others := sorted(presets - {recorded}, key=by_version)):
        return None
    newest = others[-1]
    which = f"CPython {newest}" if len(others) == 1 else "other versions"
    if not origin.cpython_version:
        return (
            f'{printable(source)} names `python: "{printable(recorded)}"`; its requests are those of that release,\n'
            f'      and {which} would request other sizes. Write `python: "{newest}"`, or use -a cpython-{recorded}'
        )
    note = (
        f"{printable(source)} was recorded with CPython {printable(recorded)}; "
        "its requests are those of that version,\n"
        f"      and {which} would request other sizes"
    )
    if tuple(map(int, newest.split("."))) < OLDEST:
        return f"{note} (CPython {newest} cannot be recorded)"
    output = f"{PurePath(source).stem}-{newest}.parquet"
    command = ["replay", "record", "--python", f"python{newest}", "-o", output, *_program(origin)]
    return f"{note}. To record them:\n      {printable(shlex.join(command))}"


def _program(origin: "Provenance") -> list[str]:
    """Returns the arguments of `python` in the recorded command line; a placeholder if it is unknown."""
    try:
        return shlex.split(origin.command or "")[1:] or ["SCRIPT"]
    except ValueError:  # the metadata may come from another program
        return ["SCRIPT"]


def requests_notes(results: "Results") -> Iterator[str]:
    """Yields a note for each recording of a sweep that was simulated with another CPython."""
    from replay.sources import open_source
    from replay.sweeps.traces import fetch

    done = results.done.unique(["source", "stack"], maintain_order=True)
    for (source,), rows in done.group_by("source", maintain_order=True):
        names = [json.loads(stack)["name"] for stack in rows["stack"]]
        if note := requests_note(str(source), open_source(fetch(str(source))).metadata.origin, names):
            yield note


def replacement_notes(plan: "Plan") -> list[str]:
    """Returns how the default stack differs from the recorded processes, if the sweep names no allocator."""
    from replay.config import default_preset, differences, load_config
    from replay.sources import open_source
    from replay.sweeps.space import ALLOCATOR
    from replay.sweeps.traces import fetch

    if ALLOCATOR in plan.vary or ALLOCATOR in plan.fixed:
        return []
    recordings = [open_source(fetch(source)).metadata for source in plan.sources]
    stack = load_config(default_preset(*recordings))
    return [str(each) for recording in recordings for each in differences(recording, stack)]
