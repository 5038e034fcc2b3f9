"""The DeltaBlue benchmark of pyperformance: a constraint solver, as in a spreadsheet or a window layout,
with many small objects in reference cycles."""

import replay

replay.mark("import")
import sys
from pathlib import Path

import pyperformance

sys.path.append(str(Path(pyperformance.__file__).parent / "data-files" / "benchmarks" / "bm_deltablue"))
from run_benchmark import delta_blue

replay.mark("warm-up")
delta_blue(100)
replay.mark("work")
for size in (100, 300):
    delta_blue(size)
