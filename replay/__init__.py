"""Simulates allocation traces with exact models of pymalloc, the C library's malloc and Linux.

The names in `__all__` are public; `docs/api.md` describes them. Each is imported on first access, so that `import
replay` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.analysis.metrics import summarize
    from replay.analysis.pin_report import find_pins
    from replay.config import load_config
    from replay.recorder.marks import mark
    from replay.recorder.session import record
    from replay.reports.snapshot_file import SnapshotFile, new_snapshot_file
    from replay.simulation.run import run
    from replay.sources import open_source
    from replay.sources.parquet import write_trace
    from replay.support.errors import ReplayError
    from replay.sweeps.sweep import sweep
    from replay.trace import Domain, Events, MemoryTrace, Op
    from replay.verification.compare import verify

__version__ = "0.1.0"

__all__ = [
    "Domain",
    "Events",
    "MemoryTrace",
    "Op",
    "ReplayError",
    "SnapshotFile",
    "__version__",
    "find_pins",
    "load_config",
    "mark",
    "new_snapshot_file",
    "open_source",
    "record",
    "run",
    "summarize",
    "sweep",
    "verify",
    "write_trace",
]

_MODULES = {
    "Domain": "trace",
    "Events": "trace",
    "MemoryTrace": "trace",
    "Op": "trace",
    "ReplayError": "support.errors",
    "SnapshotFile": "reports.snapshot_file",
    "find_pins": "analysis.pin_report",
    "load_config": "config",
    "mark": "recorder.marks",
    "new_snapshot_file": "reports.snapshot_file",
    "open_source": "sources",
    "record": "recorder.session",
    "run": "simulation.run",
    "summarize": "analysis.metrics",
    "sweep": "sweeps.sweep",
    "verify": "verification.compare",
    "write_trace": "sources.parquet",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
