"""Finds the workloads and configurations that come with the package, in a checkout and after an install.

Allocator models of other packages come by an entry point of the group MODEL_GROUP.
"""

from pathlib import Path

from replay.errors import ConfigError, ReplayError, WorkloadError
from replay.naming import nearest

MODEL_GROUP = "replay.allocators"

_PACKAGE = Path(__file__).parent


def _folder(kind: str) -> Path:
    """The wheel carries the folder inside the package, a checkout beside it."""
    installed = _PACKAGE / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def _names(kind: str) -> list[str]:
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def _find(kind: str, name: str, error: type[ReplayError], listing: str) -> Path:
    names = _names(kind)
    if name in names:
        return _folder(kind) / f"{name}.yaml"
    what = f"no bundled {kind.removesuffix('s')} has this name; {nearest(name, names)} (`{listing}` lists them)"
    raise error(f"{name}: {what}")


def workload_names() -> list[str]:
    """The bundled workloads."""
    return _names("workloads")


def find_workload(name: str) -> Path:
    """The file of a bundled workload."""
    return _find("workloads", name, WorkloadError, "replay workloads")


def config_names() -> list[str]:
    """The bundled configurations."""
    return _names("configs")


def find_config(name: str) -> Path:
    """The file of a bundled configuration."""
    return _find("configs", name, ConfigError, "replay allocators")
