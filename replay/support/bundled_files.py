"""Finds the bundled workloads and configurations, in a checkout and after an install.

A workload is a YAML file, an object program in YAML, or a recording of a real program.

Allocator models of other packages have an entry point of the group MODEL_GROUP.
"""

from pathlib import Path

from replay.support.errors import ConfigError, ReplayError, WorkloadError
from replay.support.names import nearest

MODEL_GROUP = "replay.allocators"

_PACKAGE = Path(__file__).parents[1]


def _folder(kind: str) -> Path:
    """Returns a folder of bundled files. A wheel has it inside the package, a checkout beside the package."""
    installed = _PACKAGE / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def _files(kind: str, pattern: str = "*.yaml") -> dict[str, Path]:
    return {path.stem: path for path in sorted(_folder(kind).glob(pattern))}


def _find(kind: str, files: dict[str, Path], name: str, error: type[ReplayError], listing: str) -> Path:
    if name in files:
        return files[name]
    raise error(f"{name}: no bundled {kind} has this name; {nearest(name, list(files))} (`{listing}` lists them)")


def workload_names() -> list[str]:
    """Returns the names of the bundled YAML workloads."""
    return list(_files("workloads"))


def recorded_names() -> list[str]:
    """Returns the names of the bundled recordings."""
    return list(_recordings())


def find_workload(name: str) -> Path:
    """Returns the file of a bundled workload of any kind."""
    files = _files("workloads") | _object_programs() | _recordings()
    return _find("workload", files, name, WorkloadError, "replay workloads")


def object_program_names() -> list[str]:
    """Returns the names of the bundled object programs."""
    return list(_object_programs())


def find_program(name: str) -> Path:
    """Returns the file of the program that was recorded."""
    return _folder("workloads") / "recorded" / "programs" / f"{name}.py"


def _object_programs() -> dict[str, Path]:
    return _files("workloads", "objects/*.yaml")


def _recordings() -> dict[str, Path]:
    return _files("workloads", "recorded/*.parquet")


def config_names() -> list[str]:
    """Returns the names of the bundled configurations."""
    return list(_files("configs"))


def find_config(name: str) -> Path:
    """Returns the file of a bundled configuration."""
    return _find("config", _files("configs"), name, ConfigError, "replay allocators")


def sweep_names() -> list[str]:
    """Returns the names of the bundled sweeps."""
    return list(_sweeps())


def find_sweep(name: str) -> Path:
    """Returns the file of a bundled sweep."""
    return _find("sweep", _sweeps(), name, ConfigError, "replay sweep --list")


def _sweeps() -> dict[str, Path]:
    return _files("configs", "sweeps/*.yaml")
