"""Finds allocator models by name: the files of this package, and modules behind the entry point `replay.allocators`."""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import replay.allocators
from replay.jit.compiling import is_kernel
from replay.support.bundled_files import MODEL_GROUP
from replay.support.errors import ConfigError
from replay.support.names import nearest

_NOT_MODELS = {"registry", "kernel", "stack"}
_KERNELS = sorted(set(replay.allocators.__all__) - {"MARGIN", "Stack"})
"""The functions of the contract that a kernel calls."""
_REQUIRED = ("Config", "State", "new_state", "malloc", "free", "block_size", "address")


def bundled_names() -> list[str]:
    """The models of this package."""
    names = (module.name for module in pkgutil.iter_modules(replay.allocators.__path__))
    return sorted(set(names) - _NOT_MODELS)


@cache
def _third_party() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=MODEL_GROUP)}


def model_names() -> list[str]:
    """Names that `model:` takes in a configuration."""
    return sorted({*bundled_names(), *_third_party()})


@cache
def find_model(name: str) -> ModuleType:
    """The module of the model called `name`; ConfigError if there is none, or if it breaks the contract."""
    if name in bundled_names():
        return importlib.import_module(f"{replay.allocators.__name__}.{name}")
    point = _third_party().get(name)
    if point is None:
        raise ConfigError(f"there is no allocator model {name!r}; {nearest(name, model_names())}")
    try:
        model = point.load()
    except Exception as error:  # whatever a stranger's module raises on import, the user is told which one it was
        raise ConfigError(f"allocator model {name!r} ({point.value}) cannot be imported: {error}") from error
    missing = [attribute for attribute in _REQUIRED if not hasattr(model, attribute)]
    if missing:
        raise ConfigError(f"allocator model {name!r} ({point.value}) lacks {', '.join(missing)}")
    if model.State.__module__ != model.__name__:
        raise ConfigError(f"allocator model {name!r} ({point.value}) must define its State class itself")
    return model


def roles(name: str) -> tuple[str, ...]:
    """The roles that the model called `name` can play."""
    found: tuple[str, ...] = getattr(find_model(name), "ROLES", ("libc", "pymalloc"))
    return found


def is_compiled(model: ModuleType) -> bool:
    """Whether every kernel of the model is machine code; otherwise it is played in plain Python."""
    return all(is_kernel(getattr(model, name)) for name in _KERNELS if hasattr(model, name))


def foreign_sources(models: list[ModuleType]) -> tuple[str, ...]:
    """Source files of models from elsewhere, all of their packages, for the digest of the kernel cache."""
    home = Path(replay.allocators.__file__).parent
    files: set[str] = set()
    for path in (Path(str(model.__file__)) for model in models if model.__file__):
        top = next((each for each in reversed(path.parents) if (each / "__init__.py").exists()), None)
        if home not in path.parents:
            files |= {str(each) for each in (top.rglob("*.py") if top else [path])}
    return tuple(sorted(files))
