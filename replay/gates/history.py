"""The history of checks: one Parquet file with a row for each check and case."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl

from replay import __version__
from replay.analysis.metrics import metric_names
from replay.gates.checking import Report
from replay.support.atomic_files import new_file, new_target, open_locked, write_in_memory
from replay.support.errors import ReplayError, cannot_be_written

_ABOUT = ("commit", "date", "case", "state", "replay_version")
_COMMIT_VARIABLES = ("GITHUB_SHA", "CI_COMMIT_SHA")
_NOISE_FACTOR = 3.0
_LONG = 8


@dataclass(frozen=True)
class Step:
    """A commit at which a metric changed from one level to another."""

    case: str
    metric: str
    commit: str
    date: datetime
    before: float
    after: float


def present_commit(folder: Path) -> tuple[str, datetime]:
    """Returns the current commit and its date from git; else the variables of CI and the current time."""
    try:
        fields = subprocess.run(
            ["git", "log", "-1", "--format=%H %ct"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.split()
        return fields[0], datetime.fromtimestamp(int(fields[1]), UTC)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        commit = next((os.environ[name] for name in _COMMIT_VARIABLES if os.environ.get(name)), "unknown")
        return commit, datetime.now(UTC)


def add_rows(path: Path, report: Report, folder: Path) -> int:
    """Adds a row for each measured case and returns their number. Replaces earlier rows of the same commit."""
    commit, date = present_commit(folder)
    states = {case.name: case.state for case in report.cases}
    rows = [
        {"commit": commit, "date": date, "case": name, "state": states[name], "replay_version": __version__}
        | {metric: figure.value for metric, figure in measured.figures.items()}
        for name, measured in report.measured.items()
    ]
    schema: dict[str, Any] = dict.fromkeys(_ABOUT, pl.String) | {"date": pl.Datetime("us", "UTC")}
    measured = (metric for each in report.measured.values() for metric in each.figures)
    schema |= dict.fromkeys([*metric_names(), *measured], pl.Float64)
    frame = pl.DataFrame([[row.get(name) for name in schema] for row in rows], schema=schema, orient="row")
    with _locked(path) as has_rows:
        if has_rows:
            old = read_history(path)
            replaced = (pl.col("commit") == commit) & pl.col("case").is_in(list(report.measured))
            frame = pl.concat([old.filter(~(replaced & (commit != "unknown"))), frame], how="diagonal")
        with new_file(path, force=True) as temporary:
            write_in_memory(frame.write_parquet, temporary)
    return len(rows)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Locks the file against other checks; yields whether it has rows. A new file is empty until the block ends."""
    target = new_target(path, force=True)
    try:
        file = open_locked(target, wait=True)
    except OSError as error:
        raise cannot_be_written(path, error) from None
    assert file is not None
    with file:
        has_rows = os.fstat(file.fileno()).st_size > 0
        try:
            yield has_rows
        except BaseException:
            if not has_rows:
                target.unlink()
            raise


def read_history(path: Path) -> pl.DataFrame:
    """Returns all rows, in the order in which they were added."""
    if not path.exists() or (path.is_file() and path.stat().st_size == 0):  # empty while its first rows are written
        raise ReplayError(f"{path}: the history does not exist; `replay check --history {path}` starts it")
    if not path.is_file():
        raise ReplayError(f"{path}: is not a regular file")
    try:
        frame = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ReplayError(f"{path}: is not a history: {str(error).partition(chr(10))[0]}") from None
    if missing := set(_ABOUT) - set(frame.columns):
        raise ReplayError(f"{path}: is not a history of checks: it lacks {', '.join(sorted(missing))}")
    return frame


def find_steps(frame: pl.DataFrame, metrics: Sequence[str]) -> list[Step]:
    """Returns the commits at which a metric changed its level, oldest first."""
    found = []
    for (case,), rows in frame.group_by("case", maintain_order=True):
        for metric in metrics:
            series = rows.filter(pl.col(metric).is_not_null())
            values = series[metric].to_list()
            for index, before, after in steps(values):
                commit, date = series["commit"][index], series["date"][index]
                found.append(Step(str(case), metric, commit, date, before, after))
    return sorted(found, key=lambda step: step.date)


def steps(values: Sequence[float]) -> list[tuple[int, float, float]]:
    """Returns the indexes at which the level changes, with the levels before and after.

    A change must exceed the usual difference between neighbours. A single outlier is not a change of the level, unless
    all other values are equal.
    """
    if len(values) < 2:
        return []
    jumps = sorted(abs(b - a) for a, b in pairwise(values))
    # In a short history, a few steps can be half of all differences, so a lower quantile estimates the noise.
    noise = _NOISE_FACTOR * jumps[len(jumps) // (2 if len(values) >= _LONG else 4)]
    found: list[tuple[int, float, float]] = []
    start = 0
    for index in range(1, len(values)):
        level = median(values[start:index])
        is_off = [abs(value - level) > noise for value in values[index : index + 2]]
        if is_off[0] and (noise == 0 or all(is_off)) and values[index] != level:
            found.append((index, level, values[index]))
            start = index
    if not found:
        return []
    ends = [*(index for index, _, _ in found[1:]), len(values)]
    return [(index, before, median(values[index:end])) for (index, before, _), end in zip(found, ends, strict=True)]
