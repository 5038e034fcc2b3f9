"""The cases that a check measures: `replay.toml`, or `[tool.replay]` in pyproject.toml.

    baseline = "replay-baseline.json"
    tolerances = ["resident_bytes_peak:2%", "syscalls:+10"]

    [cases.web]
    source = "web-service"
    allocator = "cpython-3.12"
    env = {MALLOC_ARENA_MAX = 2}
    tolerances = ["arenas_live:+0"]

    [cases.job]
    record = ["job.py", "--small"]

`docs/gates.md` explains every key.
"""

import tomllib
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from replay.config import StackConfig, default_environment, default_preset, load_config
from replay.gates.tolerances import parse_rules
from replay.support.errors import ConfigError, explain_parsing
from replay.support.yaml_documents import explain, read_document
from replay.trace import Metadata

SUITE, PROJECT = "replay.toml", "pyproject.toml"
BASELINE = "replay-baseline.json"


class Case(BaseModel):
    """One measurement: a trace, a workload or a program to record, simulated with one allocator stack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None = Field(None, description="Trace, workload, or name of a bundled workload.")
    record: list[str] | None = Field(None, min_length=1, description="Program to record, as after `python`.")
    recordings: PositiveInt = Field(3, description="Number of recordings of the program; the median counts.")
    against: str | None = Field(None, description="Trace to compare with, instead of the baseline.")
    allocator: str | None = Field(
        None, description="Preset or file. Default: the interpreter of the trace, else the running Python."
    )
    fixed: dict[str, Any] = Field({}, alias="set", description="Configuration keys, e.g. 'pymalloc.alignment'.")
    env: dict[str, str | int] = Field({}, description="Environment variables of glibc.")
    seed: NonNegativeInt | None = Field(None, description="Seed of the workload. Default: the workload's own.")
    tolerances: list[str] = Field([], description="Rules for this case, which override those of the suite.")
    allow_changed_trace: bool = Field(False, description="Compare even if the trace differs from the baseline's.")

    @model_validator(mode="after")
    def _has_one_origin(self) -> "Case":
        if (self.source is None) == (self.record is None):
            raise ValueError("source: name either a source or a program to record")
        if self.seed is not None and self.record is not None:
            raise ValueError("seed: only workloads have seeds")
        return self

    @field_validator("tolerances")
    @classmethod
    def _parsable(cls, texts: list[str]) -> list[str]:
        return _parsed(texts)

    def stack(self, *recordings: Metadata) -> StackConfig:
        """Returns the allocator stack for these recordings."""
        name = self.allocator or default_preset(*recordings)
        keys = [f"{key}={_as_yaml(value)}" for key, value in self.fixed.items()]
        recorded = () if self.allocator else default_environment(*recordings)
        return load_config(name, keys, [*recorded, *(f"{key}={value}" for key, value in self.env.items())])

    @property
    def origin(self) -> str:
        return self.source if self.source is not None else " ".join(self.record or ())


class Suite(BaseModel):
    """Cases and their common settings. Paths are relative to the folder of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    baseline: str = BASELINE
    history: str | None = Field(None, description="Parquet file to which each check adds a row for each case.")
    tolerances: list[str] = []
    cases: dict[str, Case] = {}

    @field_validator("tolerances")
    @classmethod
    def _parsable(cls, texts: list[str]) -> list[str]:
        return _parsed(texts)


def _parsed(texts: list[str]) -> list[str]:
    try:
        parse_rules(texts)
    except ConfigError as mistake:
        raise ValueError(str(mistake)) from None
    return texts


def _as_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_suite(folder: Path) -> Path | None:
    """Returns the suite file of a folder: replay.toml, or pyproject.toml with the table tool.replay; else None."""
    if (folder / SUITE).is_file():
        return folder / SUITE
    project = folder / PROJECT
    if project.is_file() and "replay" in _read(project).get("tool", {}):
        return project
    return None


def load_suite(path: Path) -> Suite:
    """Returns the suite in a file. Errors name the file and the key."""
    content = _read(path)
    data = content.get("tool", {}).get("replay", {}) if path.name == PROJECT else content
    try:
        return Suite.model_validate(data)
    except ValidationError as mistakes:
        schema = Suite.model_json_schema()
        lines = [
            f"{path}: {'.'.join(map(str, mistake['loc']))}: {explain(schema, mistake)}"
            for mistake in mistakes.errors(include_url=False)[:5]
        ]
        raise ConfigError(*dict.fromkeys(lines)) from None


def _read(path: Path) -> dict[str, Any]:
    text = read_document(path, ConfigError)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as mistake:
        raise ConfigError(f"{path}: is not valid TOML: {explain_parsing(mistake)}") from None
