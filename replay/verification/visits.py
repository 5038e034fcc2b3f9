"""Compares how many objects each collection of an object program visits with real interpreters.

`gc.set_debug(gc.DEBUG_STATS)` makes the collector print the lengths of its generations at the start of each collection.
Without `sys.stderr`, this allocates texts only, which the collector does not count.
"""

import re

from replay.objects import ObjectProgram
from replay.objects.running import run_program
from replay.trace import Op
from replay.verification.object_oracles import run_script
from replay.verification.objects import script_of, version_of, without_switches
from replay.verification.oracles import Oracle

_PROLOGUE = """\
import posix
posix.dup2(1, 2)
del posix, sys.stderr
"""
_BEGIN = "_start()\nmain()\n"
_LENGTHS = re.compile(r"collecting generation (\d)\.\.\.\s*gc: objects in each generation:((?: \d+)+)")


def model_visits(program: ObjectProgram, release: tuple[int, ...]) -> tuple[list[tuple[int, int]], int]:
    """Returns the generation of each collection and how many objects it visits; and the number of random choices."""
    found: list[tuple[int, int]] = []
    choices = 0
    for batch in run_program(program, release):
        starts = batch.events[batch.events["op"] == Op.GC_START]
        found += zip(starts["requested"].tolist(), starts["block"].tolist(), strict=True)
        choices = batch.choices
    return found, choices


def compared_visits(program: ObjectProgram, oracle: Oracle) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the generation of each collection and how many objects it visits: in the model, and really."""
    release = version_of(oracle)
    program = without_switches(program)
    model, choices = model_visits(program, release)
    script = script_of(program, release, choices, _PROLOGUE)
    assert script.count(_BEGIN) == 1
    begin, end = script.split(_BEGIN)
    script = f"{begin}gc.set_debug(gc.DEBUG_STATS)\n{_BEGIN}gc.set_debug(0)\n{end}"
    real = []
    for generation, lengths in _LENGTHS.findall(run_script(oracle, script)[1]):
        real.append((int(generation), sum(map(int, lengths.split()[: int(generation) + 1]))))
    return model, real
