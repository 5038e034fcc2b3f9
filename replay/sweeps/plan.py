"""The schema of sweeps in YAML, for `configs/sweeps/` and files of the user.

`docs/sweeps.md` explains every key. Options of the command line override keys of the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from replay.analysis.metrics import known_metrics
from replay.support.bundled_files import find_sweep
from replay.support.errors import ConfigError
from replay.support.names import nearest
from replay.support.yaml_documents import Document, explain
from replay.sweeps.space import FORMS, Choose, Point, Value, Values
from replay.workload.distribution_schema import PositiveSpan

_EXAMPLE = "vary: {glibc.arena_max: [1, 2]}"
DEFAULT_OBJECTIVE = "resident_bytes_peak"


class Plan(BaseModel):
    """A sweep: parameters with their values, the points to simulate, and the traces."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    sources: list[str] = Field([], description="Traces and workloads: paths, URLs, names of bundled workloads.")
    seeds: list[NonNegativeInt] = Field([], description="Seeds for each workload.")
    fixed: dict[str, Value] = Field({}, description="Values by parameter, equal in all configurations.")
    vary: dict[str, Values] = Field({}, description="Values by parameter: a list or a range.")
    choose: Choose = Choose()
    configurations: list[Point] = Field([], description="Additional points, each with all its values.")
    constraints: list[str] = Field(
        [], description="Conditions such as 'pymalloc.small_threshold <= pymalloc.pool_size/8'."
    )
    objectives: Annotated[list[str], Field(min_length=1)] = [DEFAULT_OBJECTIVE]
    trim_every: PositiveSpan | None = Field(None, description="Interval between calls of malloc_trim(0).")

    @field_validator("seeds", "sources", "objectives")
    @classmethod
    def _without_duplicates(cls, values: list[Any]) -> list[Any]:
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ValueError(f"{value!r} occurs twice")
        return values

    @field_validator("objectives")
    @classmethod
    def _known(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in known_metrics():
                raise ValueError(f"unknown metric {name!r}; {nearest(name, known_metrics())}")
        return objectives

    @model_validator(mode="after")
    def _not_fixed_and_varied(self) -> "Plan":
        if both := sorted(self.fixed.keys() & self.vary.keys()):
            raise ValueError(f"{both[0]}: is both in fixed and in vary")
        return self


def make_plan(data: Mapping[str, Any]) -> Plan:
    """Returns the plan of a mapping; raises ConfigError with one sentence for a mistake."""
    try:
        return Plan.model_validate(data)
    except ValidationError as mistakes:
        first = mistakes.errors(include_url=False)[0]
        keys = ".".join(str(part) for part in first["loc"] if part not in FORMS)
        message = explain(Plan.model_json_schema(), first)
        raise ConfigError(f"{keys}: {message}" if keys else message) from None


def load_plan(name: str) -> Plan:
    """Returns the plan in a file, or the bundled plan with this name."""
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    return Document(Path(name) if is_file else find_sweep(name), ConfigError, _EXAMPLE).parse(Plan)
