"""From the name of a preset or a YAML file, and overrides, to an allocator stack."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from replay.allocators import model_names
from replay.config.glibc_environment import notes_of, overrides_of
from replay.config.stack import StackConfig, stack_type
from replay.support.bundled_files import config_names, find_config
from replay.support.errors import ConfigError
from replay.support.yaml_documents import Document, explain, parse_yaml

_EXAMPLE = "extends: cpython-3.12"
_WITH_LIBC = re.compile(r"(?P<base>[\w.-]+)-glibc-(?P<version>\d+\.\d+)")


def load_config(name: str | Path, overrides: Sequence[str] = (), environment: Sequence[str] = ()) -> StackConfig:
    """The stack called `name`, a preset or a YAML file, with overrides like `pymalloc.alignment=8`.

    A preset's name may be followed by the version of its C library: `cpython-3.12-glibc-2.41`. `environment` has what
    glibc reads there, like `MALLOC_ARENA_MAX=2`; overrides take precedence.
    """
    if environment and load_config(name, overrides).libc_model != "glibc":
        raise ConfigError(f"--env {environment[0]}: {name} has no glibc, which would read it")
    settings = overrides_of(environment)
    said = dict.fromkeys(settings, "--env, as ") | dict.fromkeys(overrides, "--set ")
    overrides = [*settings, *overrides]
    base, libc_version = _split(name)
    document = _open(base)
    data = _with_base(document, ())
    if libc_version:
        data["name"] = str(name)
        overrides = [f"glibc.version={libc_version}", *overrides]
        said.setdefault(overrides[0], f"{name}, as ")
    for override in overrides:
        _merge(data, _parse_override(override))
    data.setdefault("name", document.path.stem)
    kind = stack_type(*_models_named(data))
    try:
        stack = kind.model_validate(data)
        stack._notes = tuple(notes_of(environment))
    except ValidationError as mistakes:
        raise _refusal(kind, document, overrides, said, mistakes) from None
    _refuse_unused(stack, overrides, said)
    return stack


def _refuse_unused(stack: StackConfig, overrides: Sequence[str], said: Mapping[str, str]) -> None:
    """Refuses an override of a model that no domain is routed to: it would have no effect."""
    for override in overrides:
        section = _section_of(override)
        if section in model_names() and section not in stack.models:
            raise ConfigError(f"{said[override]}{override}: no domain of {stack.name} goes to {section}")


def rebuild_config(data: dict[str, Any]) -> StackConfig:
    """The stack that `model_dump(mode="json")` made of one, perhaps in another process."""
    return stack_type(*_models_named(data)).model_validate(data)


def _models_named(data: Mapping[str, Any]) -> list[str]:
    """The known models that have a section or a domain."""
    domains = data.get("domains")
    named = [*data, *(domains.values() if isinstance(domains, dict) else ())]
    return sorted({name for name in named if isinstance(name, str)} & set(model_names()))


def _split(name: str | Path) -> tuple[str | Path, str]:
    """A preset's name, and the version of glibc that it asks for, if any."""
    match = _WITH_LIBC.fullmatch(name) if isinstance(name, str) and name not in config_names() else None
    return (match["base"], match["version"]) if match else (name, "")


def _open(name: str | Path) -> Document:
    text = str(name)
    is_file = isinstance(name, Path) or text.endswith((".yaml", ".yml")) or "/" in text
    return Document(Path(name) if is_file else find_config(text), ConfigError, _EXAMPLE)


def _with_base(document: Document, below: tuple[Path, ...]) -> dict[str, Any]:
    """What the document says, over what the one that it extends says."""
    data = dict(document.data)
    base = data.get("extends")
    if base is None:
        return data
    if not isinstance(base, str):
        raise ConfigError(f"{document.path}: extends: {base!r} is no name of a preset or file")
    path = document.path.resolve()
    if path in below:
        raise ConfigError(f"{document.path}: extends itself, by way of {base}")
    beside = document.path.parent / base
    merged = _with_base(_open(beside if base.endswith((".yaml", ".yml")) else base), (*below, path))
    for key in ("name", "description"):
        merged.pop(key, None)
    _merge(merged, data)
    return merged


def _merge(data: dict[str, Any], over: dict[str, Any]) -> None:
    """Lays `over` on `data`, in place, key by key."""
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
        raise ConfigError(f"--set {override}: what a stack extends is said in its file; choose another with -a")
    try:
        value = parse_yaml(text)
    except ValueError as mistake:
        raise ConfigError(f"--set {override}: is not valid YAML: {mistake}") from None
    return {keys[0]: value if len(keys) == 1 else {keys[1]: value}}


def _refusal(
    kind: type[StackConfig],
    document: Document,
    overrides: Sequence[str],
    said: Mapping[str, str],
    mistakes: ValidationError,
) -> ConfigError:
    """One sentence a mistake; told by the override where one set that key, as it was `said`, else by file and line."""
    schema = kind.model_json_schema()
    lines = []
    found = mistakes.errors(include_url=False)
    out_of_bounds = {
        mistake["loc"][:-1] for mistake in found if mistake["type"].startswith(("less_than", "greater_than"))
    }
    for mistake in found:
        *place, alternative = mistake["loc"] or ("",)
        if str(alternative).startswith("literal[") and tuple(place) in out_of_bounds:
            continue  # what else might stand there is no help where a number was meant
        what = explain(schema, mistake)
        keys = [str(part) for part in mistake["loc"]]
        blamed = [text for text in overrides if _names(text, keys)]
        # What is wrong with a section as a whole names the key first that it is about.
        blamed.sort(key=lambda text: what.startswith(f"{text.partition('=')[0].rpartition('.')[2].strip()}: "))
        lines.append(f"{said[blamed[-1]]}{blamed[-1]}: {what}" if blamed else document.sentence(mistake["loc"], what))
    return ConfigError(*dict.fromkeys(lines))


def _names(override: str, keys: list[str]) -> bool:
    """Whether the override sets the key that a mistake is about, or one of the section that it is about."""
    section, _, key = override.partition("=")[0].strip().partition(".")
    return not keys or (keys[0] == section and (len(keys) <= 1 or key in keys))
