"""Makes an allocator stack from the name of a preset or YAML file, and overrides."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from replay.allocators import model_names
from replay.config.glibc_environment import MODEL, notes_of, overrides_of
from replay.config.stack import StackConfig, stack_type
from replay.support.bundled_files import config_names, find_config
from replay.support.errors import ConfigError
from replay.support.yaml_documents import Document, explain, parse_yaml

_EXAMPLE = "extends: cpython-3.12"
_WITH_LIBC = re.compile(rf"(?P<base>[\w.-]+)-{MODEL}-(?P<version>\d+\.\d+)")
"""A preset and the version of the C library whose environment variables are known."""


def load_config(name: str | Path, overrides: Sequence[str] = (), environment: Sequence[str] = ()) -> StackConfig:
    """Returns the stack of a preset or YAML file, with overrides like `pymalloc.alignment=8`.

    The name of a preset can have the version of its C library as a suffix: `cpython-3.12-glibc-2.41`. `environment` has
    variables of glibc, like `MALLOC_ARENA_MAX=2`; overrides take precedence.
    """
    if environment and load_config(name, overrides).libc_model != MODEL:
        raise ConfigError(f"--env {environment[0]}: {name} does not use {MODEL}, so the variable has no effect")
    settings = overrides_of(environment)
    spellings = dict.fromkeys(settings, "--env, as ") | dict.fromkeys(overrides, "--set ")
    overrides = [*settings, *overrides]
    base, libc_version = _split(name)
    document = _open(base)
    data = _with_base(document, ())
    if libc_version:
        data["name"] = str(name)
        overrides = [f"{MODEL}.version={libc_version}", *overrides]
        spellings.setdefault(overrides[0], f"{name}, as ")
    for override in overrides:
        _merge(data, _parse_override(override))
    data.setdefault("name", document.path.stem)
    kind = stack_type(*_models_named(data))
    try:
        stack = kind.model_validate(data)
        stack._notes = tuple(notes_of(environment))
    except ValidationError as mistakes:
        raise _refusal(kind, document, overrides, spellings, mistakes) from None
    _refuse_unused(stack, overrides, spellings)
    return stack


def _refuse_unused(stack: StackConfig, overrides: Sequence[str], spellings: Mapping[str, str]) -> None:
    """Raises ConfigError for an override of a model that no domain uses, because it would have no effect."""
    for override in overrides:
        section = _section_of(override)
        if section in model_names() and section not in stack.models:
            raise ConfigError(f"{spellings[override]}{override}: no domain of {stack.name} uses {section}")


def rebuild_config(data: dict[str, Any]) -> StackConfig:
    """Returns the stack from the result of its `model_dump(mode="json")`, which can be from another process."""
    return stack_type(*_models_named(data)).model_validate(data)


def _models_named(data: Mapping[str, Any]) -> list[str]:
    """Returns the known models that have a section or a domain."""
    domains = data.get("domains")
    named = [*data, *(domains.values() if isinstance(domains, dict) else ())]
    return sorted({name for name in named if isinstance(name, str)} & set(model_names()))


def _split(name: str | Path) -> tuple[str | Path, str]:
    """Returns the name of a preset, and the version of the C library in its suffix or ''."""
    match = _WITH_LIBC.fullmatch(name) if isinstance(name, str) and name not in config_names() else None
    return (match["base"], match["version"]) if match else (name, "")


def _open(name: str | Path) -> Document:
    text = str(name)
    is_file = isinstance(name, Path) or text.endswith((".yaml", ".yml")) or "/" in text
    return Document(Path(name) if is_file else find_config(text), ConfigError, _EXAMPLE)


def _with_base(document: Document, below: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the document's values, merged into those of the document that it extends."""
    data = dict(document.data)
    base = data.get("extends")
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{document.path}: extends: {base!r} is not the name of a preset or file")
    path = document.path.resolve()
    if path in below:
        raise ConfigError(f"{document.path}: extends itself through {base}")
    beside = document.path.parent / base
    merged = _with_base(_open(beside if base.endswith((".yaml", ".yml")) else base), (*below, path))
    for key in ("name", "description"):
        merged.pop(key, None)
    _merge(merged, data)
    return merged


def _merge(data: dict[str, Any], over: dict[str, Any]) -> None:
    """Merges `over` into `data` key by key, in place."""
    for key, value in over.items():
        old = data.get(key)
        data[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value


def _section_of(override: str) -> str:
    return override.partition("=")[0].partition(".")[0].strip()


def _parse_override(override: str) -> dict[str, Any]:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > 2:
        raise ConfigError(f"--set {override}: write it like pymalloc.alignment=8")
    if keys == ["extends"]:
        raise ConfigError(f"--set {override}: `extends` can only be set in a file; choose another preset with -a")
    try:
        value = parse_yaml(text)
    except ValueError as mistake:
        raise ConfigError(f"--set {override}: is not valid YAML: {mistake}") from None
    return {keys[0]: value if len(keys) == 1 else {keys[1]: value}}


def _refusal(
    kind: type[StackConfig],
    document: Document,
    overrides: Sequence[str],
    spellings: Mapping[str, str],
    mistakes: ValidationError,
) -> ConfigError:
    """Returns an error with one sentence for each mistake.

    A sentence begins with the override that set the key, in its spelling on the command line, else with file and line.
    """
    schema = kind.model_json_schema()
    lines = []
    found = mistakes.errors(include_url=False)
    out_of_bounds = {
        mistake["loc"][:-1] for mistake in found if mistake["type"].startswith(("less_than", "greater_than"))
    }
    for mistake in found:
        *place, alternative = mistake["loc"] or ("",)
        if str(alternative).startswith("literal[") and tuple(place) in out_of_bounds:
            continue  # alternatives to a number would not help the user
        message = explain(schema, mistake)
        keys = [str(part) for part in mistake["loc"]]
        blamed = [text for text in overrides if _names(text, keys)]
        # A mistake of a whole section begins with the name of a key.
        blamed.sort(key=lambda text: message.startswith(f"{text.partition('=')[0].rpartition('.')[2].strip()}: "))
        lines.append(
            f"{spellings[blamed[-1]]}{blamed[-1]}: {message}" if blamed else document.sentence(mistake["loc"], message)
        )
    return ConfigError(*dict.fromkeys(lines))


def _names(override: str, keys: list[str]) -> bool:
    """Whether the override sets the key of a mistake, or a key of the section of a mistake."""
    section, _, key = override.partition("=")[0].strip().partition(".")
    return not keys or (keys[0] == section and (len(keys) <= 1 or key in keys))
