"""A sweep as it is written in YAML, in `configs/sweeps/` or a file of the user's: what to vary, and over which traces.

`docs/sweeps.md` explains every key. On the command line each can be said too, and then counts before the file.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator

from replay.document import Document
from replay.errors import ConfigError
from replay.laws import PositiveSpan
from replay.resources import find_sweep
from replay.sweeps.space import Choose, Point, Values

DEFAULT_OBJECTIVE = "resident_bytes_peak"


class Plan(BaseModel):
    """A sweep: parameters and their values, which points of them, over which traces."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str = ""
    sources: list[str] = Field([], description="Traces and workloads: paths, URLs, names of bundled ones.")
    seeds: list[NonNegativeInt] = Field([], description="Each workload is run with each of these.")
    fixed: dict[str, Any] = Field({}, description="What all configurations have in common: values by parameter.")
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


def load_plan(name: str) -> Plan:
    """The plan in a file, or a bundled one by its name."""
    is_file = name.endswith((".yaml", ".yml")) or "/" in name
    return Document(Path(name) if is_file else find_sweep(name), ConfigError).parse(Plan)
