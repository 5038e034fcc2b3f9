"""The DeltaBlue benchmark of pyperformance: a solver of constraints, much like a spreadsheet or the layout of a window,
whose many small objects refer to each other in circles."""

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
