"""Stores each outcome on disk at once, so that an interrupted sweep can be resumed.

sweep.json       the plan, its inputs and the version of replay; written when the sweep begins
outcomes.jsonl   one outcome in each line, synced to the disk before the next one
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from replay.support.atomic_files import has_already, new_file, new_folder_target
from replay.support.errors import ReplayError, cannot_be_written
from replay.support.version import identity
from replay.sweeps.outcomes import Outcome
from replay.sweeps.plan import Plan
from replay.sweeps.traces import Input

ABOUT, OUTCOMES = "sweep.json", "outcomes.jsonl"
RESULTS, CSV = "results.parquet", "results.csv"
CHARTS = ("sweep.html", "effects.png", "heatmap.png", "pareto.png")
WRITTEN = (ABOUT, OUTCOMES, RESULTS, CSV, *CHARTS)
_OUTCOME = TypeAdapter(Outcome)


class Journal:
    """The outcomes so far, by key; in a folder, or only in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._file: FileIO | None = None
        if folder is not None:
            self._path = folder / OUTCOMES
            try:
                self._file = _open_alone(self._path)
                _cut_torn_line(self._path)
            except OSError as error:
                raise cannot_be_written(self._path, error) from error
            self.outcomes = {each.key: each for each in _read(self._path) if not each.transient}

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.key] = outcome
        if self._file is None:
            return
        line = json.dumps(asdict(outcome)).encode() + b"\n"
        try:
            while line:  # a write to a nearly full disk can be partial
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_be_written(self._path, error) from error

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()


def _open_alone(path: Path) -> FileIO:
    """Opens the file for appending, and locks it against other processes."""
    file = FileIO(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ReplayError(f"{path.parent}: another sweep is writing to it; choose another folder") from None
    return file


def _read(path: Path) -> Iterator[Outcome]:
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            yield _OUTCOME.validate_json(line)
        except ValidationError:
            message = "is damaged; delete that line, and --resume repeats its run"
            raise ReplayError(f"{path}:{number}: {message}") from None


def _cut_torn_line(path: Path) -> None:
    """Removes an incomplete last line, which remains if the process was killed while it wrote."""
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)


def begin(folder: Path, about: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Prepares the folder. A resumed sweep keeps its outcomes and uses those of its own tasks."""
    path = folder / ABOUT
    new_folder_target(folder)
    continues = path.exists() and resume
    if continues:
        _refuse_another(folder, about, force=force)
    existing = [name for name in WRITTEN if (folder / name).exists()]
    if existing and not continues and not force:
        content = "a sweep" if path.exists() else existing[0]
        advice = "continue it with --resume, " if path.exists() else ""
        raise has_already(folder, content, advice)
    try:
        folder.mkdir(exist_ok=True)
        if (folder / OUTCOMES).exists():
            _open_alone(folder / OUTCOMES).close()
        for name in WRITTEN:
            if not (continues and name in (ABOUT, OUTCOMES)):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    with new_file(path, force=True) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _refuse_another(folder: Path, about: dict[str, Any], *, force: bool) -> None:
    """Raises ReplayError if the folder has another sweep, unless `force`."""
    old = read_about(folder)
    if old["replay_version"] != about["replay_version"]:
        message = f"has a sweep by replay {old['replay_version']}, and this is {about['replay_version']}"
        raise ReplayError(f"{folder}: {message}; resume it with that version, or choose another folder")
    differs = [key for key in about["plan"] if key not in _NO_RUNS and about["plan"][key] != old["plan"].get(key)]
    if not differs and [(each["digest"], each["seed"]) for each in about["inputs"]] != [
        (each["digest"], each["seed"]) for each in old["inputs"]
    ]:
        differs = ["the content of the traces"]
    if differs and not force:
        message = f"has another sweep, with other {', '.join(differs)}"
        raise ReplayError(f"{folder}: {message}; add --force to reuse matching runs, or choose another folder")


_NO_RUNS = ("description", "objectives")
"""Keys of a plan that do not influence any run."""


_OF_AN_INPUT = ("source", "where", "seed", "digest")


def describe(plan: Plan, inputs: list[Input]) -> dict[str, Any]:
    """Returns the content of `sweep.json`."""
    return {
        "replay_version": identity(),
        "plan": plan.model_dump(mode="json", by_alias=True),
        "inputs": [{name: getattr(each, name) for name in _OF_AN_INPUT} for each in inputs],
    }


def read_about(folder: Path) -> dict[str, Any]:
    """Returns the content of `sweep.json` in a folder."""
    path = folder / ABOUT
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about["replay_version"], str):
            raise TypeError
        Plan.model_validate(about["plan"])
        [Input(**each) for each in about["inputs"]]
        return about
    except OSError:
        raise ReplayError(f"{folder}: has no sweep; name a folder that `replay sweep --out` wrote") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ReplayError(f"{path}: is not a sweep that this version of replay can read") from None
