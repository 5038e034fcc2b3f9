"""The children of a recorded program that were recorded beside it, and what each of them writes to after its fork."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.analysis.forks import ForkedMemory
    from replay.trace import Trace


def forked_children(source: str, trace: "Trace") -> "list[ForkedMemory]":
    """Returns the private memory of the children of a recording by `replay record --follow-fork --types`, in the order
    of the forks. `trace`: the recording, or the same under other settings of the collector."""
    from replay.analysis.forks import forked_memory, forks_of, heap_at_fork
    from replay.config.collector import with_collector
    from replay.sources import open_source
    from replay.trace.editing.collecting import CollectedTrace, CollectorSettings

    settings = trace.settings if isinstance(trace, CollectedTrace) else CollectorSettings()
    forks = forks_of(trace)
    if not forks:
        return []
    path = Path(source)
    found: list[tuple[int, ForkedMemory]] = []
    recording = open_source(source)
    for file in sorted(path.parent.glob(f"*{path.suffix}")):
        stem, _, process = file.stem.rpartition(".")
        if stem != path.stem or not process.isdecimal():
            continue
        child = open_source(str(file))
        fork = next(iter(child.metadata.phases), "")
        if fork not in forks or child.metadata.collector is None:
            continue
        heap = heap_at_fork(recording, fork, child, _reached(settings.freeze_at, fork, recording))
        collecting = with_collector(child, replace(settings, freeze_at=None))
        if heap and (memory := forked_memory(heap, child, collecting, file.name, int(process), fork)):
            found.append((forks.index(fork), memory))
    return [memory for _, memory in sorted(found, key=lambda each: each[0])]


def _reached(freeze_at: str | None, fork: str, recording: "Trace") -> str | None:
    """Returns the phase at which all objects are frozen, if it is not after the fork."""
    phases = recording.metadata.phases
    return freeze_at if freeze_at in phases and phases.index(freeze_at) <= phases.index(fork) else None
