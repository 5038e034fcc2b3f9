"""Converts points of a sweep's space to allocator stacks, or skips them with the reason."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from replay.allocators import bundled_names, find_model, foreign_sources, model_names
from replay.config import StackConfig, default_preset, load_config, without_pymalloc
from replay.config.collector import is_of_collector
from replay.config.glibc_environment import overrides_of
from replay.support.bundled_files import config_names
from replay.support.errors import ConfigError
from replay.support.names import by_version, nearest
from replay.support.units import parse_time_with_unit
from replay.sweeps.constraints import Constraint, Unanswerable
from replay.sweeps.plan import Plan
from replay.sweeps.space import ALLOCATOR, DEFAULT, DEFAULT_MALLOC, TRIM_EVERY, Point, Space, points
from replay.trace import Metadata

_REPEATED = re.compile(r'^--(?:set|env) [^=]*=(?:"[^"]*"|\S*): ', re.MULTILINE)
"""The beginning of an error message that repeats the setting; the point already has it."""


@dataclass(frozen=True)
class Configuration:
    """A stack, and the parameters of its point."""

    parameters: Point
    stack: StackConfig
    trim_every_ns: int | None = None
    """Interval between calls of malloc_trim(0)."""
    is_default: bool = False

    @property
    def key(self) -> str:
        """A key that is equal for configurations with equal results."""
        return f"{stack_key(self.stack)}:{self.trim_every_ns or 0}"


@dataclass(frozen=True)
class Skipped:
    """A point that cannot be run, with the reason."""

    parameters: Point
    reason: str


def stack_key(stack: StackConfig) -> str:
    """Returns a digest of the stack's effective settings and of the sources of third-party models."""
    content = json.dumps(stack.effective_settings(), sort_keys=True)
    digest = hashlib.sha256(content.encode())
    digest.update(_foreign_digest(stack.models))
    return digest.hexdigest()


@cache
def _foreign_digest(models: tuple[str, ...]) -> bytes:
    sources = foreign_sources([find_model(name) for name in models])
    return b"".join(hashlib.sha256(Path(path).read_bytes()).digest() for path in sources)


class Resolver:
    """Converts points to stacks. Raises ConfigError at once for parameters that no point can have.

    The *default* is the configuration that all others are compared with: the preset of `default_preset(recordings)`, or
    the first allocator if that preset is not among them. It has only the settings of `fixed`.
    """

    def __init__(self, plan: Plan, recordings: Sequence[Metadata] = ()) -> None:
        self.plan = plan
        self._preset = default_preset(*recordings)
        self.space = expand(plan.vary)
        varied = self.space.get(ALLOCATOR, [plan.fixed.get(ALLOCATOR, DEFAULT)])
        listed = (each.get(ALLOCATOR) for each in plan.configurations)
        self._allocators = [each for each in dict.fromkeys([*varied, *listed]) if each is not None]
        if strange := [each for each in self._allocators if not isinstance(each, str)]:
            raise ConfigError(f"{ALLOCATOR}: {strange[0]} is not the name of a preset or file")
        own = [name for name in varied if name in (DEFAULT, self._preset)]
        self._allocator = own[0] if own else varied[0]
        keys = self._known_keys()
        _refuse_unknown([*plan.fixed, *self.space, *(name for each in plan.configurations for name in each)], keys)
        if not isinstance(self.space.get(TRIM_EVERY, []), list):
            raise ConfigError(f"{TRIM_EVERY}: write a list of times, such as 1s,10s")
        for point in self._points():
            self._trim_every_ns(point)
        self._constraints = [Constraint(text, keys) for text in plan.constraints]
        self.default = Configuration(
            {**dict.fromkeys([ALLOCATOR, *self.space], DEFAULT), ALLOCATOR: self._allocator},
            self._stack({ALLOCATOR: self._allocator}),
            self._trim_every_ns({}),
            is_default=True,
        )

    def resolve(self, point: Point) -> Configuration | Skipped:
        """Returns the configuration of a point, or why it is skipped."""
        try:
            stack = self._stack(point)
        except ConfigError as error:
            return Skipped(point, _REPEATED.sub("", str(error)))
        try:
            broken = next((each for each in self._constraints if not each.holds(stack)), None)
        except Unanswerable as reason:
            return Skipped(point, str(reason))
        if broken:
            return Skipped(point, f"violates the constraint {broken.text}")
        found = Configuration(point, stack, self._trim_every_ns(point))
        is_default = found.key == self.default.key and stack.name == self.default.stack.name
        return replace(found, is_default=is_default)

    def _trim_every_ns(self, point: Point) -> int | None:
        value = {**self.plan.fixed, **point}.get(TRIM_EVERY, DEFAULT)
        if value == DEFAULT:
            return self.plan.trim_every
        try:
            if interval_ns := parse_time_with_unit(str(value)):
                return interval_ns
            raise ValueError("must be longer than 0; write it like 10ms")
        except ValueError as mistake:
            raise ConfigError(f"{TRIM_EVERY}: {mistake}") from None

    def _stack(self, point: Point) -> StackConfig:
        settings = {name: value for name, value in {**self.plan.fixed, **point}.items() if value != DEFAULT}
        settings.pop(TRIM_EVERY, None)
        allocator = self._named(settings.pop(ALLOCATOR, DEFAULT))
        environment = [f"{name}={value}" for name, value in settings.items() if "." not in name]
        keys = [f"{name}={json.dumps(value)}" for name, value in settings.items() if "." in name]
        return load_config(allocator, keys, environment)

    def _named(self, allocator: str) -> str:
        """Returns the name of a preset or file."""
        if allocator == DEFAULT_MALLOC:
            return without_pymalloc(self._preset)
        return self._preset if allocator == DEFAULT else allocator

    def _known_keys(self) -> set[str]:
        """Returns all keys of the stacks of the sweep, also with any other model of the package or the sweep."""
        stacks = [load_config(self._named(name)) for name in self._allocators]
        named = {str(value) for each in (self.plan.fixed, *self._points()) for value in each.values()}
        models = {*bundled_names(), *(name for stack in stacks for name in stack.models), *named & set(model_names())}
        sections = {"linux": stacks[0].linux, "domains": stacks[0].domains, "costs": stacks[0].costs}
        types = {name: type(section) for name, section in sections.items()}
        types |= {name: find_model(name).Config for name in models}
        return {f"{section}.{key}" for section, kind in types.items() for key in kind.model_fields}

    def _points(self) -> Iterator[Point]:
        """Yields a point for each value of each parameter, and the points of `configurations`."""
        yield from (
            {name: value} for name, values in self.space.items() if isinstance(values, list) for value in values
        )
        yield from self.plan.configurations


_HARMLESS = {"GLIBC_TUNABLES": ""}


def _refuse_unknown(names: Iterable[str], known: set[str]) -> None:
    """Raises ConfigError for a key that no stack of the sweep has: it is a mistake, not a combination to skip."""
    for name in names:
        if name in (ALLOCATOR, TRIM_EVERY) or name in known:
            continue
        if is_of_collector(name):
            raise ConfigError(
                f"{name}: sweeps vary allocators, and the garbage collector changes the trace; use `replay compare`"
                f" SOURCE --grid {name}=…, or `replay run` SOURCE --set {name}=…"
            )
        if "." in name or not name.isupper():
            raise ConfigError(
                f"{name}: no allocator has this key; {nearest(name, sorted({ALLOCATOR, TRIM_EVERY, *known}))}"
            )
        overrides_of([f"{name}={_HARMLESS.get(name, '1')}"])


def expand(space: Space) -> dict[str, Any]:
    """Returns the space with patterns of allocators, like `cpython-*`, replaced by the matching presets."""
    expanded: dict[str, Any] = dict(space)
    if ALLOCATOR in space:
        names = space[ALLOCATOR]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{ALLOCATOR}: write a list of presets or files")
        expanded[ALLOCATOR] = list(dict.fromkeys(each for name in names for each in _matching(name)))
        return {ALLOCATOR: expanded.pop(ALLOCATOR), **expanded}
    return expanded


def _matching(pattern: str) -> list[str]:
    if not set("*?[") & set(pattern):
        return [pattern]
    found = [name for name in sorted(config_names(), key=by_version) if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(f"{ALLOCATOR}: no preset matches {pattern!r}; `replay allocators` lists them")
    return found


def impossible(skipped: Skipped) -> ConfigError:
    """Returns the error for a point that cannot be run."""
    return ConfigError(f"{point_text(skipped.parameters)} cannot be run: {skipped.reason}")


def configurations(resolver: Resolver, *, strict: bool = False) -> list[Configuration | Skipped]:
    """Returns the default unless it is a point of the plan, the chosen points, and the points of `configurations`."""
    plan = resolver.plan
    chosen = points(resolver.space, plan.choose) if resolver.space or not plan.configurations else []
    resolved = [resolver.resolve(point) for point in [*chosen, *plan.configurations]]
    skipped = [each for each in resolved if isinstance(each, Skipped)]
    if strict and skipped:
        raise impossible(skipped[0])
    if resolved and len(skipped) == len(resolved):
        raise ConfigError(
            f"no combination can be run; the first, {point_text(skipped[0].parameters)}: {skipped[0].reason}"
        )
    if any(isinstance(each, Configuration) and each.is_default for each in resolved):
        return resolved
    return [resolver.default, *resolved]


def point_text(point: Point) -> str:
    """Returns the parameters of a point as one line."""
    return " ".join(setting_text(name, value) for name, value in point.items())


def setting_text(name: str, value: Any) -> str:
    """Returns a parameter and its value as on a command line."""
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"
