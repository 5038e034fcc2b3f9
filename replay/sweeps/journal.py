"""Outcomes on disk as they come, so that a sweep that was cut off can go on.

sweep.json       what is swept: the plan, its inputs, replay's version; written when the sweep begins
outcomes.jsonl   an outcome a line, written through to the disk before the next one
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from replay.errors import OutputError, ReplayError
from replay.output import new_file
from replay.sweeps.outcomes import Outcome
from replay.sweeps.plan import Plan
from replay.sweeps.traces import Input
from replay.version import identity

ABOUT, OUTCOMES = "sweep.json", "outcomes.jsonl"
RESULTS, CSV = "results.parquet", "results.csv"


class Journal:
    """The outcomes known so far, by key; in a folder, or in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._file = None
        if folder is not None:
            path = folder / OUTCOMES
            self.outcomes = {each.key: each for each in _read(path) if not each.transient}
            _cut_torn_line(path)
            self._file = path.open("a", encoding="utf-8")

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.key] = outcome
        if self._file is not None:
            self._file.write(json.dumps(asdict(outcome)) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def _read(path: Path) -> Iterator[Outcome]:
    """All whole lines; the last may be torn."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            yield Outcome(**json.loads(line))
        except (ValueError, TypeError):
            raise ReplayError(f"{path}: is no record of a sweep; start again in another folder") from None


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def begin(folder: Path, about: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Makes the folder ready; a sweep that goes on keeps its outcomes, of which those that fit are used."""
    path = folder / ABOUT
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is not a folder; choose another name")
    if not folder.resolve().parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.resolve().parent}; make it first")
    goes_on = path.exists() and resume
    if goes_on and (old := read_about(folder)["replay_version"]) != identity():
        what = f"holds a sweep by replay {old}, and this is {identity()}"
        raise ReplayError(f"{folder}: {what}; resume it with that one, or choose another folder")
    if path.exists() and not resume and not force:
        advice = "go on with --resume, choose another folder, or overwrite it with --force"
        raise OutputError(f"{folder}: holds a sweep already; {advice}")
    try:
        folder.mkdir(exist_ok=True)
        for name in (RESULTS, CSV) if goes_on else (RESULTS, CSV, OUTCOMES):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    with new_file(path, force=True) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def describe(plan: Plan, inputs: list[Input]) -> dict[str, Any]:
    """What `sweep.json` holds."""
    return {
        "replay_version": identity(),
        "plan": plan.model_dump(mode="json", by_alias=True),
        "inputs": [asdict(each) for each in inputs],
    }


def read_about(folder: Path) -> dict[str, Any]:
    """`sweep.json` of a folder."""
    path = folder / ABOUT
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Plan.model_validate(about["plan"])
        [Input(**each) for each in about["inputs"]]
        return about
    except OSError:
        raise ReplayError(f"{folder}: holds no sweep; name a folder that `replay sweep --out` wrote") from None
    except (ValueError, KeyError, TypeError):
        raise ReplayError(f"{path}: is no description of a sweep that this replay reads") from None
