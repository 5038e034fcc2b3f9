"""Points of a sweep's space made into allocator stacks, or set aside with the reason."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from replay.allocators.registry import bundled_names, find_model, foreign_sources, model_names, roles
from replay.config import StackConfig, default_preset, load_config
from replay.environment import overrides_of
from replay.errors import ConfigError
from replay.naming import by_version, nearest
from replay.resources import config_names
from replay.sweeps.constraints import Constraint, Unanswerable
from replay.sweeps.plan import Plan
from replay.sweeps.space import ALLOCATOR, DEFAULT, Point, Space, points
from replay.trace import Metadata

ROLES = ("libc", "pymalloc")
_NO_NAMES = {"name", "extends", "description"}
"""Of a stack's keys, those that change no result."""


_REPEATED = re.compile(r'^--(?:set|env) [^=]*=(?:"[^"]*"|\S*): ', re.MULTILINE)
"""The point says that already."""


@dataclass(frozen=True)
class Configuration:
    """A stack, and the parameters that led to it."""

    parameters: Point
    stack: StackConfig
    is_default: bool = False

    @property
    def key(self) -> str:
        """The same for stacks that give the same results."""
        return stack_key(self.stack)


@dataclass(frozen=True)
class Skipped:
    """A point that cannot be run."""

    parameters: Point
    reason: str


def stack_key(stack: StackConfig) -> str:
    """A digest of what decides results: the stack, and the sources of models that are no part of this package."""
    content = json.dumps(stack.model_dump(mode="json", exclude=_NO_NAMES), sort_keys=True)
    digest = hashlib.sha256(content.encode())
    models = tuple(section.model for section in (stack.libc, stack.pymalloc) if section is not None)
    digest.update(_foreign_digest(models))
    return digest.hexdigest()


@cache
def _foreign_digest(models: tuple[str, ...]) -> bytes:
    sources = foreign_sources([find_model(name) for name in models])
    return b"".join(hashlib.sha256(Path(path).read_bytes()).digest() for path in sources)


class Resolver:
    """Makes stacks of points; what no point could ever mean is refused at once.

    The *default* that all others are compared with is the preset that matches `recordings`, as `default_preset` finds
    it; or the first allocator where that is not among them. Nothing is set in it but what is set in all.
    """

    def __init__(self, plan: Plan, recordings: Sequence[Metadata] = ()) -> None:
        self.plan = plan
        self._preset = default_preset(*recordings)
        self.space = expand(plan.vary)
        varied = self.space.get(ALLOCATOR, [plan.fixed.get(ALLOCATOR, DEFAULT)])
        listed = (each.get(ALLOCATOR) for each in plan.configurations)
        self._allocators = [each for each in dict.fromkeys([*varied, *listed]) if each is not None]
        if strange := [each for each in self._allocators if not isinstance(each, str)]:
            raise ConfigError(f"{ALLOCATOR}: {strange[0]} is no name of a preset or file")
        own = [name for name in varied if name in (DEFAULT, self._preset)]
        self._allocator = own[0] if own else varied[0]
        keys = self._known_keys()
        _refuse_unknown([*plan.fixed, *self.space, *(name for each in plan.configurations for name in each)], keys)
        self._constraints = [Constraint(text, keys) for text in plan.constraints]
        self.default = Configuration(
            {**dict.fromkeys([ALLOCATOR, *self.space], DEFAULT), ALLOCATOR: self._allocator},
            self._stack({ALLOCATOR: self._allocator}),
            is_default=True,
        )

    def resolve(self, point: Point) -> Configuration | Skipped:
        """The stack of a point, if there can be one and all constraints hold."""
        try:
            stack = self._stack(point)
        except ConfigError as error:
            return Skipped(point, _REPEATED.sub("", str(error)))
        try:
            broken = next((each for each in self._constraints if not each.holds(stack)), None)
        except Unanswerable as reason:
            return Skipped(point, str(reason))
        if broken:
            return Skipped(point, f"against the constraint {broken.text}")
        is_default = stack_key(stack) == self.default.key and stack.name == self.default.stack.name
        return Configuration(point, stack, is_default)

    def _stack(self, point: Point) -> StackConfig:
        settings = {name: value for name, value in {**self.plan.fixed, **point}.items() if value != DEFAULT}
        allocator = settings.pop(ALLOCATOR, None) or self._preset
        environment = [f"{name}={value}" for name, value in settings.items() if "." not in name]
        keys = [f"{name}={json.dumps(value)}" for name, value in settings.items() if "." in name]
        return load_config(allocator, keys, environment)

    def _known_keys(self) -> set[str]:
        """All that can be set in the stacks of the sweep, or with another model of the package or the sweep in them."""
        stacks = [load_config(self._preset if name == DEFAULT else name) for name in self._allocators]
        known = {f"{section}.{key}" for section in _SECTIONS for stack in stacks for key in _fields(stack, section)}
        for model in bundled_names():
            known |= {f"{role}.{key}" for role in roles(model) for key in find_model(model).Config.model_fields}
        for role in ROLES:
            named = [self.plan.fixed.get(f"{role}.model"), *(each.get(f"{role}.model") for each in self._points())]
            for model in {str(name) for name in named if name is not None} & set(model_names()):
                known |= {f"{role}.{key}" for key in find_model(model).Config.model_fields}
        return known

    def _points(self) -> Iterator[Point]:
        """Each value of each parameter once, as a point, and those that are spelled out."""
        yield from (
            {name: value} for name, values in self.space.items() if isinstance(values, list) for value in values
        )
        yield from self.plan.configurations


_SECTIONS = ("kernel", "domains", "costs", "libc", "pymalloc")
_HARMLESS = {"GLIBC_TUNABLES": ""}


def _fields(stack: StackConfig, section: str) -> Iterable[str]:
    values: BaseModel | None = getattr(stack, section)
    return () if values is None else type(values).model_fields


def _refuse_unknown(names: Iterable[str], known: set[str]) -> None:
    """A key that no stack of the sweep has is a mistake, and not a combination to skip."""
    for name in names:
        if name == ALLOCATOR or name in known:
            continue
        if "." in name or not name.isupper():
            raise ConfigError(f"{name}: no allocator has this key; {nearest(name, sorted({ALLOCATOR, *known}))}")
        overrides_of([f"{name}={_HARMLESS.get(name, '1')}"])


def expand(space: Space) -> dict[str, Any]:
    """The space with patterns of allocators, like `cpython-*`, replaced by the presets that match."""
    expanded: dict[str, Any] = dict(space)
    if ALLOCATOR in space:
        names = space[ALLOCATOR]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{ALLOCATOR}: give a list of presets or files")
        expanded[ALLOCATOR] = list(dict.fromkeys(each for name in names for each in _matching(name)))
        return {ALLOCATOR: expanded.pop(ALLOCATOR), **expanded}
    return expanded


def _matching(pattern: str) -> list[str]:
    if not set("*?[") & set(pattern):
        return [pattern]
    found = [name for name in sorted(config_names(), key=by_version) if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(f"{ALLOCATOR}: no preset is like {pattern!r}; `replay allocators` lists them")
    return found


def configurations(resolver: Resolver, *, strict: bool = False) -> list[Configuration | Skipped]:
    """All points of a plan, those spelled out last, behind the default unless it is one of them."""
    plan = resolver.plan
    chosen = points(resolver.space, plan.choose) if resolver.space or not plan.configurations else []
    resolved = [resolver.resolve(point) for point in [*chosen, *plan.configurations]]
    skipped = [each for each in resolved if isinstance(each, Skipped)]
    if strict and skipped:
        raise ConfigError(f"{tell(skipped[0].parameters)} cannot be run: {skipped[0].reason}")
    if resolved and len(skipped) == len(resolved):
        raise ConfigError(f"no combination can be run; the first, {tell(skipped[0].parameters)}: {skipped[0].reason}")
    if any(isinstance(each, Configuration) and each.is_default for each in resolved):
        return resolved
    return [resolver.default, *resolved]


def tell(point: Point) -> str:
    """The parameters in a line."""
    return " ".join(f"{name}={value}" for name, value in point.items())
