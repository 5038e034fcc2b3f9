"""Workloads in YAML. `docs/workloads.md` explains the format, `replay.workload` has its schema."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from replay.support.errors import WorkloadError

if TYPE_CHECKING:
    from replay.support.yaml_documents import Location
    from replay.workload.generator.processes import WorkloadTrace

SUFFIXES = (".yaml", ".yml")


def open_trace(path: Path, seed: int | None = None) -> "WorkloadTrace":
    """Returns the trace of a workload, which is generated when it is read. `seed` overrides the seed of the file."""
    from replay.workload import load_workload
    from replay.workload.generator.processes import WorkloadTrace

    workload = load_workload(path)
    return WorkloadTrace(
        workload, path.stem, workload.seed if seed is None else seed, sentence=partial(_sentence, path)
    )


def _sentence(path: Path, location: "Location", mistake: str) -> str:
    from replay.support.yaml_documents import Document
    from replay.workload import EXAMPLE

    return Document(path, WorkloadError, EXAMPLE).sentence(location, mistake)
