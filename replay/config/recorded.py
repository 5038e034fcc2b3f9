"""Finds the allocator stack of a recorded process, and the differences of another stack."""

import re
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

from replay.allocators.glibc import RULES, Config
from replay.config.glibc_environment import MODEL, overrides_of
from replay.config.stack import StackConfig
from replay.support.bundled_files import config_names
from replay.support.errors import ConfigError
from replay.support.names import by_version, printable
from replay.trace import Metadata, Runtime

NEWEST = "cpython-3.15"
_VERSION = re.compile(r"cpython-(\d+\.\d+)")
_GLIBC = re.compile(r"glibc (\d+\.\d+)")
_OF_GLIBC = re.compile(r"libc[.-]")
"""The beginning of the file name of glibc."""


class Difference(NamedTuple):
    """A difference between a recorded process and a stack."""

    part: Literal["interpreter", "allocator", "libc", "settings"]
    recorded: str
    simulated: str

    def __str__(self) -> str:
        return f"recorded with {printable(self.recorded)}, simulated with {printable(self.simulated)}"


def default_preset(*recordings: Metadata) -> str:
    """Returns the preset that matches all these recordings or object programs best; else that of the running Python.

    `differences` returns how the preset differs.
    """
    matching = {_matching_preset(each) for each in recordings}
    preset = matching.pop() if len(matching) == 1 else None
    return preset or _preset_of(f"{sys.version_info.major}.{sys.version_info.minor}")


def default_environment(*recordings: Metadata) -> tuple[str, ...]:
    """Returns the settings of malloc that all these recordings were made with, for the stack of `default_preset`.

    Settings that the model refuses are left out; `differences` returns them.
    """
    recorded = {(each.runtime or Runtime()).malloc_settings for each in recordings}
    settings = recorded.pop() if len(recorded) == 1 else ()
    return tuple(each for each in settings if _overrides(each) is not None)


def without_pymalloc(preset: str) -> str:
    """Returns the preset for the same interpreter with PYTHONMALLOC=malloc."""
    base, libc, version = preset.partition("-glibc-")
    return preset if base.endswith("-malloc") else f"{base}-malloc{libc}{version}"


def differences(metadata: Metadata, config: StackConfig) -> list[Difference]:
    """Returns the differences between the recorded process and the stack, as far as they are known."""
    runtime = metadata.runtime or Runtime()
    allocator = config.small_model or "malloc"
    libc = config.title(config.libc_model)
    version = _VERSION.match(config.name) or _VERSION.match(config.extends or "")
    recorded = metadata.origin.cpython_version
    pairs = [
        Difference("interpreter", recorded and f"CPython {recorded}", version[0].replace("cpython-", "CPython "))
        if version
        else None,
        Difference("allocator", runtime.allocator, allocator),
        Difference("libc", runtime.libc if _has_own_malloc(runtime) else runtime.malloc, libc),
        *_other_settings(runtime, config),
    ]
    return [each for each in pairs if each and each.recorded and each.recorded != each.simulated]


def _other_settings(runtime: Runtime, config: StackConfig) -> Iterator[Difference]:
    """Yields the recorded settings of malloc that the stack does not have."""
    section = config.section(MODEL)
    for assignment in runtime.malloc_settings if section else ():
        overrides = _overrides(assignment)
        if overrides is None:
            yield Difference("settings", assignment, "the setting's default, because its value is not supported")
        else:
            keys = (each.removeprefix(f"{MODEL}.").partition("=") for each in overrides)
            others = [
                f"{MODEL}.{key}={found}" for key, _, value in keys if str(found := getattr(section, key)) != value
            ]
            if others:
                yield Difference("settings", assignment, ", ".join(others))


def _overrides(assignment: str) -> list[str] | None:
    """Returns the overrides for an environment variable; None if the model refuses its value."""
    try:
        return overrides_of([assignment])
    except ConfigError:
        return None


def _preset_of(version: str) -> str:
    return f"cpython-{version}" if f"cpython-{version}" in config_names() else NEWEST


def _matching_preset(metadata: Metadata) -> str | None:
    """Returns the preset that matches a recording or object program best; None for other traces."""
    version, runtime = metadata.origin.cpython_version or metadata.origin.python, metadata.runtime or Runtime()
    if not version:
        return None
    suffix = "-malloc" if runtime.allocator in ("malloc", "malloc_debug") else ""
    return f"{_preset_of(version)}{suffix}{_glibc_suffix(runtime)}"


def _has_own_malloc(runtime: Runtime) -> bool:
    """Whether `malloc` is that of the C library, not of a library that replaces it."""
    return not runtime.malloc or bool(_OF_GLIBC.match(runtime.malloc))


def _glibc_suffix(runtime: Runtime) -> str:
    """Returns the suffix of a preset's name for the newest model of glibc that is not newer than the recorded one."""
    match = _GLIBC.fullmatch(runtime.libc)
    if match is None or not _has_own_malloc(runtime):
        return ""
    versions = sorted(RULES, key=by_version)
    version = next((each for each in reversed(versions) if by_version(each) <= by_version(match[1])), versions[0])
    return "" if version == Config().version else f"-glibc-{version}"
