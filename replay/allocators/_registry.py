"""Finds allocator models by name: the modules of this package, and those behind the entry point `replay.allocators`.

A module whose name begins with an underscore is a helper, not a model.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

from replay.allocators._contract import KERNELS, Constants, find_mistakes
from replay.allocators._tally import Counter, Layout, tally_layout
from replay.jit.compiling import is_kernel
from replay.support.bundled_files import MODEL_GROUP
from replay.support.errors import ConfigError
from replay.support.names import nearest

_HOME = Path(__file__).parent
_ADDRESS_SPACE = "linux"
"""The layer below every stack; no domain can be routed to it."""


def bundled_names() -> list[str]:
    """The models of this package."""
    names = (module.name for module in pkgutil.iter_modules([str(_HOME)]))
    return sorted(name for name in names if not name.startswith("_") and name != _ADDRESS_SPACE)


@cache
def _third_party() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=MODEL_GROUP)}


def model_names() -> list[str]:
    """Names that a configuration can route domains to."""
    return sorted({*bundled_names(), *_third_party()})


def explain_unknown(name: str) -> str:
    """The mistake in a name that no model has."""
    return f"unknown allocator model {name!r}; {nearest(name, model_names())}"


def usable_models() -> list[str]:
    """The names of models that can be imported and keep the contract."""
    return [name for name in model_names() if _is_usable(name)]


def _is_usable(name: str) -> bool:
    try:
        find_model(name)
    except ConfigError:
        return False
    return True


@cache
def find_model(name: str) -> ModuleType:
    """The module of the model called `name`; ConfigError if it is unknown or breaks the contract."""
    model = importlib.import_module(f"{__package__}.{name}") if name in bundled_names() else _load_third_party(name)
    if mistakes := find_mistakes(model):
        what = "; ".join(mistakes)
        raise ConfigError(f"allocator model {name!r} ({model.__file__}) breaks the contract of models: {what}")
    return model


def _load_third_party(name: str) -> ModuleType:
    point = _third_party().get(name)
    if point is None:
        raise ConfigError(explain_unknown(name))
    try:
        model: ModuleType = point.load()
    except Exception as error:  # whatever a third party's module raises on import, the user learns which one it was
        raise ConfigError(f"allocator model {name!r} ({point.value}) cannot be imported: {error}") from error
    return model


def constants_of(name: str) -> Constants:
    """What the model called `name` declares, and the defaults."""
    declared = vars(find_model(name))
    return Constants()._replace(**{field: declared[field] for field in Constants._fields if field in declared})


def roles(name: str) -> tuple[str, ...]:
    """The roles that the model called `name` can have."""
    return constants_of(name).ROLES


def counters_of(name: str) -> tuple[Counter, ...]:
    """The counters that the model called `name` declares."""
    return constants_of(name).COUNTERS


def layout_of(names: Iterable[str]) -> Layout:
    """The layout of the counters of a stack of these models."""
    return tally_layout(tuple((name, counters_of(name)) for name in dict.fromkeys(names)))


def is_compiled(model: ModuleType) -> bool:
    """Whether every kernel of the model is machine code; otherwise it runs in plain Python."""
    return all(is_kernel(getattr(model, name)) for name in KERNELS if hasattr(model, name))


def foreign_sources(models: list[ModuleType]) -> tuple[str, ...]:
    """Source files of third-party models, for the digest of the kernel cache."""
    paths = [Path(str(model.__file__)) for model in models if model.__file__]
    return tuple(sorted(str(path) for path in paths if _HOME not in path.parents))
