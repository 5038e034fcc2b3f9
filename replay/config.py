"""The allocator stack as a user describes it: a preset or YAML file, what it extends, and overrides.

    name: cpython-3.12
    extends: cpython-3.11
    kernel:   {page_size: 4 KiB, mmap_base: 0x7ffff7ff0000}
    libc:     {model: glibc, version: "2.36", mmap_threshold: dynamic}
    pymalloc: {model: pymalloc, alignment: 16, arena_size: 1 MiB}
    domains:  {raw: libc, mem: pymalloc, obj: pymalloc}

`libc` and `pymalloc` are roles: `model` names who plays it, and the other keys are that model's own. A role that names
another model than the file it extends starts from that model's defaults.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model, model_validator

from replay.allocators.kernel import Config as KernelConfig
from replay.allocators.registry import bundled_names, find_model, model_names, roles
from replay.document import Document, explain, parse_yaml
from replay.environment import notes_of, overrides_of
from replay.errors import ConfigError
from replay.naming import by_version, printable
from replay.resources import config_names, find_config
from replay.trace import Metadata, Runtime

Role = Literal["libc", "pymalloc"]
NEWEST = "cpython-3.15"
_VERSION = re.compile(r"cpython-(\d+\.\d+)")
_GLIBC = re.compile(r"glibc (\d+\.\d+)")
_OF_GLIBC = re.compile(r"libc[.-]")
"""How the file name of glibc itself begins."""
_WITH_LIBC = re.compile(r"(?P<base>[\w.-]+)-glibc-(?P<version>\d+\.\d+)")
_EXAMPLE = "extends: cpython-3.12"
_DEFAULT_MODELS: dict[str, str] = {"libc": "glibc", "pymalloc": "pymalloc"}


class Domains(BaseModel):
    """Which role answers each API of CPython; past Python's API it is always libc."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    raw: Role = "libc"
    mem: Role = "pymalloc"
    obj: Role = "pymalloc"

    def by_number(self) -> tuple[Role, Role, Role]:
        """In the order of `replay.trace.Domain`."""
        return self.raw, self.mem, self.obj


Nanoseconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Costs(BaseModel):
    """Nanoseconds that one of each takes, for the estimate of time; no count depends on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    call: Nanoseconds = Field(12, description="malloc, calloc, realloc or free on its fast path")
    pool: Nanoseconds = Field(60, description="a pool set up for a size class")
    syscall: Nanoseconds = Field(900, description="mmap, munmap, brk …: entering and leaving the kernel")
    page_fault: Nanoseconds = Field(250, description="first touch of a page, zeroing included")


class StackConfig(BaseModel):
    """An allocator stack: kernel, C library, pymalloc, and which domain goes where.

    `libc` and `pymalloc` hold the `Config` of the model that plays the role; `pymalloc` is None where nobody does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    extends: str | None = Field(None, description="A preset or file whose values hold where this one is silent.")
    description: str = ""
    kernel: KernelConfig = KernelConfig()
    libc: Any
    pymalloc: Any
    domains: Domains = Domains()
    costs: Costs = Costs()
    _notes: tuple[str, ...] = PrivateAttr(())
    """Of the way in which the stack was described; they are no part of it."""

    @model_validator(mode="after")
    def _roles_are_played(self) -> "StackConfig":
        if self.pymalloc is None and self.uses_pymalloc:
            raise ValueError("domains: one goes to pymalloc, but pymalloc is null")
        for role, section in (("libc", self.libc), ("pymalloc", self.pymalloc)):
            if section is not None and role not in roles(section.model):
                raise ValueError(f"{role}: model {section.model!r} plays {roles(section.model)[0]} only")
        return self

    @property
    def uses_pymalloc(self) -> bool:
        """Whether any domain goes to the small role."""
        return "pymalloc" in self.domains.by_number()

    @property
    def notes(self) -> list[str]:
        """What is set but does nothing, or less than it says."""
        sections = (self.libc, self.pymalloc)
        return [*self._notes, *(note for section in sections for note in getattr(section, "notes", ()))]


@cache
def stack_type(*models: str) -> type[StackConfig]:
    """StackConfig with the sections of the bundled models and of these others spelled out."""
    configs = tuple(find_model(name).Config for name in sorted({*bundled_names(), *models}))
    section: Any = Annotated[Union[configs], Field(discriminator="model")]  # noqa: UP007 - members known at run time
    sections: dict[str, Any] = {"libc": (section, ...), "pymalloc": (section | None, ...)}
    return create_model("StackConfig", __base__=StackConfig, __doc__=StackConfig.__doc__, **sections)


class Difference(NamedTuple):
    """Something that a recorded process had and a stack has otherwise."""

    part: Literal["interpreter", "allocator", "libc"]
    recorded: str
    simulated: str

    def __str__(self) -> str:
        return f"recorded with {printable(self.recorded)}, simulated with {printable(self.simulated)}"


def default_preset(*recordings: Metadata) -> str:
    """The preset that matches these recordings, if they agree; else that of the Python that is running.

    It is the nearest there is: `differences` returns what is otherwise.
    """
    matching = {_matching_preset(each) for each in recordings}
    preset = matching.pop() if len(matching) == 1 else None
    return preset or _preset_of(f"{sys.version_info.major}.{sys.version_info.minor}")


def recorded_version(metadata: Metadata) -> str:
    """Major and minor version of the CPython that was recorded; empty where the trace does not say."""
    name, _, version = metadata.origin.get("interpreter", "").partition(" ")
    return ".".join(version.split(".")[:2]) if name == "cpython" else ""


def differences(metadata: Metadata, config: StackConfig) -> list[Difference]:
    """How the stack differs from what was in force in the recorded process, as far as that is known."""
    runtime = metadata.runtime or Runtime()
    allocator = config.pymalloc.model if config.uses_pymalloc else "malloc"
    libc = f"glibc {config.libc.version}" if config.libc.model == "glibc" else config.libc.model
    version = _VERSION.match(config.name) or _VERSION.match(config.extends or "")
    recorded = recorded_version(metadata)
    pairs = [
        Difference("interpreter", recorded and f"CPython {recorded}", version[0].replace("cpython-", "CPython "))
        if version
        else None,
        Difference("allocator", runtime.allocator, allocator),
        Difference("libc", runtime.libc if _has_own_malloc(runtime) else runtime.malloc, libc),
    ]
    return [each for each in pairs if each and each.recorded and each.recorded != each.simulated]


def _preset_of(version: str) -> str:
    return f"cpython-{version}" if f"cpython-{version}" in config_names() else NEWEST


def _matching_preset(metadata: Metadata) -> str | None:
    """None of a trace that was not recorded."""
    version, runtime = recorded_version(metadata), metadata.runtime or Runtime()
    if not version:
        return None
    suffix = "-malloc" if runtime.allocator in ("malloc", "malloc_debug") else ""
    return f"{_preset_of(version)}{suffix}{_glibc_suffix(runtime)}"


def _has_own_malloc(runtime: Runtime) -> bool:
    """Whether `malloc` is the C library's, and not that of a library that replaces it."""
    return not runtime.malloc or bool(_OF_GLIBC.match(runtime.malloc))


def _glibc_suffix(runtime: Runtime) -> str:
    """Behind a preset's name, for the newest model of glibc that is not newer than the recorded one."""
    from replay.allocators.glibc import RULES, Config

    match = _GLIBC.fullmatch(runtime.libc)
    if match is None or not _has_own_malloc(runtime):
        return ""
    versions = sorted(RULES, key=by_version)
    version = next((each for each in reversed(versions) if by_version(each) <= by_version(match[1])), versions[0])
    return "" if version == Config().version else f"-glibc-{version}"


def load_config(name: str | Path, overrides: Sequence[str] = (), environment: Sequence[str] = ()) -> StackConfig:
    """The stack called `name`, a preset or a YAML file, with overrides like `pymalloc.alignment=8`.

    A preset's name may go on with the version of its C library: `cpython-3.12-glibc-2.41`. `environment` has what glibc
    reads there, like `MALLOC_ARENA_MAX=2`; overrides count more.
    """
    if environment and load_config(name, overrides).libc.model != "glibc":
        raise ConfigError(f"--env {environment[0]}: {name} has no glibc, which would read it")
    settings = overrides_of(environment)
    said = dict.fromkeys(settings, "--env, as ") | dict.fromkeys(overrides, "--set ")
    overrides = [*settings, *overrides]
    base, libc_version = _split(name)
    document = _open(base)
    data = _with_base(document, ())
    if libc_version:
        data["name"] = str(name)
        overrides = [f"libc.version={libc_version}", *overrides]
        said.setdefault(overrides[0], f"{name}, as ")
    for override in overrides:
        _merge(data, _parse_override(override))
    for role, model in _DEFAULT_MODELS.items():
        section = data.setdefault(role, {})
        if isinstance(section, dict):
            section.setdefault("model", model)
    data.setdefault("name", document.path.stem)
    named = [section["model"] for role in _DEFAULT_MODELS if isinstance(section := data[role], dict)]
    strange = [name for name in named if not isinstance(name, str)]
    if strange:
        raise ConfigError(f"model: {strange[0]!r} is no name; there are {', '.join(model_names())}")
    kind = stack_type(*sorted(named))
    try:
        stack = kind.model_validate(data)
        stack._notes = tuple(notes_of(environment))
        return stack
    except ValidationError as mistakes:
        raise _refusal(kind, document, overrides, said, mistakes) from None


def rebuild_config(data: dict[str, Any]) -> StackConfig:
    """The stack that `model_dump(mode="json")` made of one, perhaps in another process."""
    models = [data[role]["model"] for role in _DEFAULT_MODELS if data[role] is not None]
    return stack_type(*sorted(models)).model_validate(data)


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
    """Lays `over` on `data`, in place, key by key; a section that changes its model starts afresh."""
    for key, value in over.items():
        old = data.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_model(key, old, value):
            data[key] = {**old, **value}
        else:
            data[key] = value


def _same_model(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    model = old.get("model", _DEFAULT_MODELS.get(key))
    return bool(new.get("model", model) == model)


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
    return ConfigError("\n".join(dict.fromkeys(lines)))


def _names(override: str, keys: list[str]) -> bool:
    """Whether the override sets the key that a mistake is about, or one of the section that it is about."""
    section, _, key = override.partition("=")[0].strip().partition(".")
    whole = 2 if section in _DEFAULT_MODELS else 1  # behind a role stands the model's name
    return not keys or (keys[0] == section and (len(keys) <= whole or key in keys))
