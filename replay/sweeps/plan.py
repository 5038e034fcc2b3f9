"""A sweep as it is written in YAML, in `configs/sweeps/` or a file of the user's: what to vary, and over which traces.

`docs/sweeps.md` explains every key. On the command line each can be said too, and then counts before the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from replay.analysis.metrics import metric_names
from replay.support.bundled_files import find_sweep
from replay.support.errors import ConfigError
from replay.support.names import nearest
from replay.support.yaml_documents import Document, explain
from replay.sweeps.space import FORMS, Choose, Point, Value, Values
from replay.workload.distribution_schema import PositiveSpan

_EXAMPLE = "vary: {glibc.arena_max: [1, 2]}"
DEFAULT_OBJECTIVE = "resident_bytes_peak"


class Plan(BaseModel):
    """A sweep: parameters and their values, which points of them, over which traces."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    sources: list[str] = Field([], description="Traces and workloads: paths, URLs, names of bundled ones.")
    seeds: list[NonNegativeInt] = Field([], description="Each workload is run with each of these.")
    fixed: dict[str, Value] = Field({}, description="What all configurations have in common: values by parameter.")
    vary: dict[str, Values] = Field({}, description="Values by parameter: a list, or a range.")
    choose: Choose = Choose()
    configurations: list[Point] = Field([], description="Further points, each spelled out.")
    constraints: list[str] = Field(
        [], description="Conditions like 'pymalloc.small_threshold <= pymalloc.pool_size/8'."
    )
    objectives: Annotated[list[str], Field(min_length=1)] = [DEFAULT_OBJECTIVE]
    trim_every: PositiveSpan | None = Field(None, description="malloc_trim(0) is called so often.")

    @field_validator("seeds", "sources", "objectives")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ValueError(f"{value!r} is there twice")
        return values

    @field_validator("objectives")
    @classmethod
    def _known(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in metric_names():
                raise ValueError(f"there is no metric {name!r}; {nearest(name, metric_names())}")
        return objectives

    @model_validator(mode="after")
    def _not_both(self) -> "Plan":
        if both := sorted(self.fixed.keys() & self.vary.keys()):
            raise ValueError(f"{both[0]}: is fixed and varied at once")
        return self


def make_plan(data: Mapping[str, Any]) -> Plan:
    """The plan that a mapping says; what is wrong with it is told in one sentence."""
    try:
        return Plan.model_validate(data)
    except ValidationError as mistakes:
        first = mistakes.errors(include_url=False)[0]
        keys = ".".join(str(part) for part in first["loc"] if part not in FORMS)
        what = explain(Plan.model_json_schema(), first)
        raise ConfigError(f"{keys}: {what}" if keys else what) from None


def load_plan(name: str) -> Plan:
    """The plan in a file, or a bundled one by its name."""
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    return Document(Path(name) if is_file else find_sweep(name), ConfigError, _EXAMPLE).parse(Plan)
