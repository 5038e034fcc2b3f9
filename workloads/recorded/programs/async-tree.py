"""The async_tree benchmark of pyperformance: thousands of asyncio tasks are live at once,
as in a gateway that waits for many requests to other services."""

import asyncio
import sys
from pathlib import Path

import pyperformance

import replay

sys.path.append(str(Path(pyperformance.__file__).parent / "data-files" / "benchmarks" / "bm_async_tree"))
import run_benchmark

with replay.record(sys.argv[1], clean=True, force=True):
    replay.mark("warm-up")
    run_benchmark.NUM_RECURSE_LEVELS, run_benchmark.NUM_RECURSE_BRANCHES = 3, 4
    asyncio.run(run_benchmark.IOAsyncTree().run())
    replay.mark("work")
    run_benchmark.NUM_RECURSE_LEVELS, run_benchmark.NUM_RECURSE_BRANCHES = 5, 5
    asyncio.run(run_benchmark.IOAsyncTree().run())
