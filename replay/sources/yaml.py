"""Workloads and object programs in YAML. `docs/workloads.md` and `docs/objects.md` explain the formats."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from replay.support.errors import WorkloadError

if TYPE_CHECKING:
    from replay.objects.tracing import ObjectTrace
    from replay.support.yaml_documents import Location
    from replay.workload.generator.processes import WorkloadTrace

SUFFIXES = (".yaml", ".yml")


def open_trace(path: Path, seed: int | None = None) -> "WorkloadTrace | ObjectTrace":
    """Returns the trace of a workload or object program, which is generated when it is read.

    `seed` overrides the seed of the file.
    """
    from replay.support.yaml_documents import Document, Problem
    from replay.workload import EXAMPLE, parse_workload
    from replay.workload.generator.processes import WorkloadTrace

    document = Document(path, WorkloadError, EXAMPLE)
    if document.data.get("kind") == "objects":
        from replay.objects import parse_objects
        from replay.objects.tracing import ObjectTrace

        program = parse_objects(document)
        return ObjectTrace(program, program.program.seed if seed is None else seed)
    if "kind" in document.data:
        kind = document.data["kind"]
        raise document.refusal(
            [Problem(("kind",), f"unknown kind {kind!r}; write `kind: objects`, or none for a workload")]
        )
    workload = parse_workload(document)
    return WorkloadTrace(
        workload, path.stem, workload.seed if seed is None else seed, sentence=partial(_sentence, path)
    )


def _sentence(path: Path, location: "Location", mistake: str) -> str:
    from replay.support.yaml_documents import Document
    from replay.workload import EXAMPLE

    return Document(path, WorkloadError, EXAMPLE).sentence(location, mistake)
