"""Parameters of a sweep, their values, and the choice of points in the space of all parameters.

A *parameter* is `allocator` (a preset or file), a configuration key like `pymalloc.alignment`, an environment variable
of glibc like `MALLOC_ARENA_MAX`, or `trim_every`, the interval between calls of malloc_trim(0). A *point* has one value
for each parameter; `DEFAULT` leaves the parameter unset.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from replay.support.errors import ConfigError
from replay.support.units import parse_size

ALLOCATOR, TRIM_EVERY = "allocator", "trim_every"
DEFAULT = "default"
DEFAULT_MALLOC = "default-malloc"
"""As a value of ALLOCATOR: the default preset without pymalloc."""
LEVELS_MAX = 10_000
GRID_MAX = 100_000
"""Maximum number of combinations. More are probably a mistake in a range."""
_NEARLY = 1e-9
"""Tolerance for floating-point errors in the number of steps."""


def _scalar(value: Any) -> Any:
    if value is None:
        raise ValueError(f"is empty; write `{DEFAULT}` for the value of the preset")
    if not isinstance(value, bool | int | float | str):
        raise ValueError(f"{value} is not a value; write a number, a text, true or false")
    return value


Value = Annotated[Any, BeforeValidator(_scalar)]
"""A value of a parameter."""
Point = dict[str, Value]


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value} is not a number")
    return parse_size(value) if isinstance(value, str) else value


Number = Annotated[Annotated[int | float, Field(allow_inf_nan=False)], BeforeValidator(_number)]


class Range(BaseModel):
    """A range of numbers: in steps, by a factor, or all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    first: Number = Field(alias="from", ge=0)
    last: Number = Field(alias="to", ge=0)
    step: Annotated[Number | None, Field(gt=0)] = None
    factor: Annotated[float | None, Field(gt=1)] = None
    scale: Literal["linear", "log"] = "linear"

    @model_validator(mode="after")
    def _possible(self) -> "Range":
        if self.last < self.first:
            raise ValueError(f"to: {self.last} is less than from, {self.first}")
        if self.step is not None and self.factor is not None:
            raise ValueError("step: a range has a step or a factor, not both")
        if (self.factor is not None or self.scale == "log") and self.first <= 0:
            raise ValueError("from: must be greater than 0 in a range with a factor or a logarithmic scale")
        if self.scale == "log" and not self.is_continuous:
            raise ValueError("scale: not allowed in a range with a step or factor")
        if not self.is_continuous and self._count() > LEVELS_MAX:
            kind, by = ("step", self.step) if self.step is not None else ("factor", self.factor)
            raise ValueError(f"{kind}: {by} makes more than {LEVELS_MAX:,} values")
        return self

    @property
    def is_continuous(self) -> bool:
        return self.step is None and self.factor is None

    def levels(self) -> list[Any]:
        """Returns the values of a range with steps or a factor."""
        if self.step is not None:
            return [self._at(self.first + self.step * n) for n in range(self._count())]
        assert self.factor is not None
        return list(dict.fromkeys(self._at(self.first * self.factor**n) for n in range(self._count())))

    def _count(self) -> int:
        if self.step is not None:
            return int((self.last - self.first) / self.step + _NEARLY) + 1
        assert self.factor is not None
        return int(math.log(self.last / self.first) / math.log(self.factor) + _NEARLY) + 1

    def at(self, share: float) -> Any:
        """Returns the value at a share of the range, from 0 to 1."""
        if self.scale == "log":
            return self._at(self.first * (self.last / self.first) ** share)
        return self._at(self.first + (self.last - self.first) * share)

    def _at(self, value: float) -> int | float:
        whole = isinstance(self.first, int) and isinstance(self.last, int) and not isinstance(self.step, float)
        return round(value) if whole else float(f"{value:.12g}")  # 0.3, and not 0.30000000000000004


FORMS = ("list", "range")
"""Tags of the forms of values, which pydantic inserts between the keys in its errors."""


def _form(values: Any) -> str:
    return "range" if isinstance(values, dict | Range) else "list"


Values = Annotated[
    Annotated[list[Value], Field(min_length=1), Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(_form),
]
Space = Mapping[str, Values]


class Choose(BaseModel):
    """The choice of the points that are run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["grid", "random", "latin"] = "grid"
    runs: PositiveInt | None = Field(None, description="Number of points, if kind is random or latin.")
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _counted(self) -> "Choose":
        if self.runs is not None and self.runs > GRID_MAX:
            raise ValueError(f"runs: {self.runs:,} exceeds the maximum of {GRID_MAX:,}")
        if (self.kind == "grid") != (self.runs is None):
            raise ValueError(
                f"runs: {'not allowed with the kind grid' if self.runs else 'missing: the number of points'}"
            )
        return self


def levels(name: str, values: Values) -> list[Any]:
    """Returns all values of a parameter. Raises ConfigError for a continuous range."""
    if isinstance(values, list):
        return values
    if values.is_continuous:
        raise ConfigError(
            f"{name}: a grid needs a step or a factor for the range {values.first} to {values.last}; "
            "set one, or choose points at random or by latin hypercube"
        )
    return values.levels()


def grid_size(space: Space) -> int | None:
    """Returns the number of points of the space; None if a range is continuous."""
    if any(isinstance(values, Range) and values.is_continuous for values in space.values()):
        return None
    return math.prod(len(levels(name, values)) for name, values in space.items())


def points(space: Space, choose: Choose) -> list[Point]:
    """Returns the chosen points, each once. In a grid, the last parameter varies fastest."""
    if choose.kind == "grid":
        size = grid_size(space)
        if size is not None and size > GRID_MAX:
            raise ConfigError(f"the grid has {size:,} points, more than {GRID_MAX:,}; choose some by latin hypercube")
        values = [levels(name, those) for name, those in space.items()]
        chosen = [dict(zip(space, each, strict=True)) for each in itertools.product(*values)]
    else:
        assert choose.runs is not None
        shares = _shares(choose, len(space))
        chosen = [
            {name: at(values, share) for (name, values), share in zip(space.items(), row, strict=True)}
            for row in shares.tolist()
        ]
    return list(_distinct(chosen))


def at(values: Values, share: float) -> Any:
    """Returns the value at a share of a parameter's values, from 0 to below 1."""
    if isinstance(values, Range) and values.is_continuous:
        return values.at(share)
    countable = levels("", values)
    return countable[int(share * len(countable))]


def _shares(choose: Choose, parameters: int) -> np.ndarray:
    """Returns a row of shares in [0, 1) for each point: independent, or one in each of `runs` equal parts per
    column."""
    assert choose.runs is not None
    random = np.random.Generator(np.random.PCG64(choose.seed))
    if choose.kind == "random":
        return random.random((choose.runs, parameters))
    parts = np.column_stack([random.permutation(choose.runs) for _ in range(parameters)])
    return (parts + random.random(parts.shape)) / choose.runs


def _distinct(chosen: list[Point]) -> Iterator[Point]:
    seen = set()
    for point in chosen:
        name = repr(point)
        if name not in seen:
            seen.add(name)
            yield point
