"""The raytrace benchmark of pyperformance: geometry computed with objects that live for microseconds,
as in simulations without arrays."""

import sys
from pathlib import Path

import pyperformance

import replay

sys.path.append(str(Path(pyperformance.__file__).parent / "data-files" / "benchmarks" / "bm_raytrace"))
from run_benchmark import bench_raytrace

with replay.record(sys.argv[1], clean=True, force=True):
    replay.mark("warm-up")
    bench_raytrace(1, 5, 5, None)
    replay.mark("work")
    bench_raytrace(1, 20, 20, None)
