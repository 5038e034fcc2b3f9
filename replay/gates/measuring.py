"""Measures cases: records programs and simulates all traces in parallel threads."""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from replay.config import StackConfig, differences
from replay.gates.baselines import Figure, Measured
from replay.gates.cases import Case
from replay.recorder.tap import site_obstacle
from replay.support.errors import ReplayError
from replay.sweeps.configurations import Configuration, stack_key
from replay.sweeps.outcomes import Outcome, Task, make_task
from replay.sweeps.threads import Threads
from replay.sweeps.traces import find_inputs

Progress = Callable[[int, int], None]
BEFORE = "__before__"
"""Suffix for the name of a reference trace: it is simulated with the stack of the case that is compared with it."""


@dataclass(frozen=True)
class Measurement:
    """A case's figures, its stack and its trace; of several recordings, the median one."""

    measured: Measured
    trace: Path | str
    stack: StackConfig
    notes: tuple[str, ...] = ()
    """Notes about the stack."""


def measure(cases: Mapping[str, Case], base: Path, scratch: Path, progress: Progress) -> dict[str, Measurement]:
    """Measures all cases. Their paths are relative to `base`; recordings are written into `scratch`."""
    origins = {name: _origins(name, case, base, scratch) for name, case in cases.items()}
    tasks: dict[str, list[Task]] = {}
    stacks: dict[str, StackConfig] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for name, case in cases.items():
        seeds = [] if case.seed is None else [case.seed]
        inputs = [trace for origin in origins[name] for trace in find_inputs([str(origin)], seeds)]
        recordings, main = [trace.recorded for trace in inputs], name.removesuffix(BEFORE)
        stack = stacks[name] = stacks[main] if main in stacks else case.stack(*recordings)
        differing = [] if case.allocator else [str(each) for one in recordings for each in differences(one, stack)]
        notes[name] = (*stack.notes, *differing)
        tasks[name] = [make_task(trace, Configuration({}, stack)) for trace in inputs]
    outcomes = _simulate([task for each in tasks.values() for task in each], progress)
    found = {}
    for name, case in cases.items():
        case_outcomes = [outcomes[task.key] for task in tasks[name]]
        for outcome in case_outcomes:
            if outcome.status != "done":
                raise ReplayError(f"case {name}: {outcome.error}")
        measured, trace = _combined(case, stack_key(stacks[name]), case_outcomes, origins[name])
        found[name] = Measurement(measured, trace, stacks[name], notes[name])
    return found


def _simulate(tasks: list[Task], progress: Progress) -> dict[str, Outcome]:
    """Runs each different task once; returns the outcomes by key."""
    distinct = {task.key: task for task in tasks}
    outcomes = {}
    for outcome in Threads().outcomes(list(distinct.values())):
        outcomes[outcome.key] = outcome
        progress(len(outcomes), len(distinct))
    return outcomes


def _combined(
    case: Case, stack: str, outcomes: list[Outcome], origins: list[Path | str]
) -> tuple[Measured, Path | str]:
    """Returns the figures and the median trace. `stack` is the key of the stack."""
    figures = {}
    for metric in outcomes[0].metrics:
        values = [float(outcome.metrics[metric]) for outcome in outcomes]
        figures[metric] = Figure(value=statistics.median_low(values), low=min(values), high=max(values))
    peaks = [float(outcome.metrics["resident_bytes_peak"]) for outcome in outcomes]
    middle = peaks.index(statistics.median_low(peaks))
    digest = outcomes[0].trace_digest if case.record is None else None
    return Measured(case=case, trace=digest, stack=stack, figures=figures), origins[middle]


def _origins(name: str, case: Case, base: Path, scratch: Path) -> list[Path | str]:
    """Returns the traces of a case: its source, or new recordings of its program."""
    if case.source is not None:
        return [locate(case.source, base)]
    assert case.record is not None
    return [record(case.record, scratch / f"{name}-{number}.parquet", base) for number in range(case.recordings)]


def locate(source: str, base: Path) -> Path | str:
    """Returns the path of a source relative to the suite's folder; other kinds of sources (URLs, names) as they are."""
    return base / source if "://" not in source and (base / source).exists() else source


def record(program: list[str], path: Path, folder: Path) -> Path:
    """Records a program into `path`, with `folder` as its working directory. Raises ReplayError if the program fails.

    PYTHONHASHSEED is 0 unless the environment sets it: hashes of strings decide the layout of sets and dictionaries,
    and so the allocations.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sites = [] if site_obstacle() else ["--sites"]
    options = ["--clean", "--no-addresses", *sites, "-o", str(path)]
    command = [sys.executable, "-m", "replay", "record", *options, *program]
    environment = {"PYTHONHASHSEED": "0", **os.environ, "PYTHONPATH": _python_path()}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not path.exists():
        message = (done.stderr.strip().splitlines() or ["no output on standard error"])[-1]
        raise ReplayError(
            f"{' '.join(program)}: ended with exit code {done.returncode} while it was recorded: {message}"
        )
    return path


def _python_path() -> str:
    """Returns PYTHONPATH with the folder of this package first, so that the recorder need not be installed."""
    home = str(Path(__file__).parents[2])
    return os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
