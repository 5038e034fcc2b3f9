"""The schema of distributions of sizes, lifetimes and counts in a workload.

A quantity alone is a constant; every other distribution is a mapping with a `kind`. The forms are generic in their
unit: `SizeLaw` has bytes, `LifetimeLaw` nanoseconds (and also `forever` and `until-next`), `CountLaw` counts.
`replay.workload.generator.distributions` draws from them.
"""

from typing import Annotated, Any, Generic, Literal, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import (
    Discriminator,
    Field,
    Tag,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from replay.support.limits import MAX_SIZE, MAX_SPAN
from replay.support.units import Size, Time
from replay.support.yaml_documents import Form

BlockSize = Annotated[Size, Le(MAX_SIZE)]
Span = Annotated[Time, Le(MAX_SPAN)]
PositiveSpan = Annotated[Time, Gt(0), Le(MAX_SPAN)]
Count = Annotated[int, Ge(0), Le(1_000_000_000)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Quantity = TypeVar("Quantity", bound=int)
Measured = TypeVar("Measured")
_NAMES: dict[object, str] = {BlockSize: "OfSizes", Span: "OfTimes", Count: "OfCounts"}
"""Suffixes of the names of forms in the JSON Schema, by unit."""


class Spread(Form, Generic[Measured]):
    """A distribution."""

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        return cls.__name__ + _NAMES.get(params[0], "")


class Choice(Spread[Quantity], Generic[Quantity]):
    """One of the given values, with a probability proportional to its weight."""

    kind: Literal["choice"]
    weights: Annotated[dict[Quantity, Weight], Field(min_length=1)]

    @field_validator("weights", mode="wrap")
    @classmethod
    def _without_duplicates(cls, written: Any, read: ValidatorFunctionWrapHandler) -> Any:
        weights = read(written)
        if len(weights) < len(written):
            raise ValueError("one value has two weights, written in different units")
        return weights

    @model_validator(mode="after")
    def _some_weight(self) -> "Choice[Quantity]":
        if not any(self.weights.values()):
            raise ValueError("all weights are zero; at least one value needs a weight")
        return self


def _refuse_falling(least: Quantity | None, most: Quantity | None) -> None:
    if least is not None and most is not None and least > most:
        raise ValueError(f"min {least} is above max {most}; exchange them")


class Uniform(Spread[Quantity], Generic[Quantity]):
    """A uniform distribution of integers from `min` to `max`, both included."""

    kind: Literal["uniform"]
    min: Quantity
    max: Quantity

    @model_validator(mode="after")
    def _rising(self) -> "Uniform[Quantity]":
        _refuse_falling(self.min, self.max)
        return self


def _above_zero(value: Quantity) -> Quantity:
    if value <= 0:
        raise ValueError("must be above zero")
    return value


class Clipped(Spread[Quantity], Generic[Quantity]):
    """A distribution with tails: values outside `min` and `max` are clipped to them."""

    min: Quantity | None = None
    max: Quantity | None = None

    @model_validator(mode="after")
    def _rising(self) -> "Clipped[Quantity]":
        _refuse_falling(self.min, self.max)
        return self


class Lognormal(Clipped[Quantity], Generic[Quantity]):
    """A lognormal distribution: the logarithm is normal with standard deviation `sigma`."""

    kind: Literal["lognormal"]
    median: Quantity
    sigma: Annotated[float, Field(ge=0, le=20)]

    @field_validator("median")
    @classmethod
    def _positive(cls, median: Quantity) -> Quantity:
        return _above_zero(median)


class Exponential(Clipped[Quantity], Generic[Quantity]):
    """An exponential distribution, which is memoryless: the remaining lifetime is independent of the age."""

    kind: Literal["exponential"]
    mean: Quantity

    @field_validator("mean")
    @classmethod
    def _positive(cls, mean: Quantity) -> Quantity:
        return _above_zero(mean)


class Pareto(Spread[Quantity], Generic[Quantity]):
    """A Pareto distribution, with a heavy tail: the probability to exceed a value falls by 2**alpha per doubling."""

    kind: Literal["pareto"]
    min: Quantity
    alpha: Annotated[float, Field(ge=0.05, le=100)]
    max: Quantity | None = None

    @field_validator("min")
    @classmethod
    def _positive(cls, least: Quantity) -> Quantity:
        return _above_zero(least)

    @model_validator(mode="after")
    def _rising(self) -> "Pareto[Quantity]":
        _refuse_falling(self.min, self.max)
        return self


class Histogram(Spread[Quantity], Generic[Quantity]):
    """A measured distribution: `counts[i]` values from `edges[i]` up to, but not including, `edges[i + 1]`."""

    kind: Literal["histogram"]
    edges: Annotated[list[Quantity], Field(min_length=2)]
    counts: Annotated[list[Weight], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits(self) -> "Histogram[Quantity]":
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.counts)} counts need {len(self.counts) + 1} edges, not {len(self.edges)}")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must increase")
        if not any(self.counts):
            raise ValueError("all counts are zero; at least one bin needs a count")
        return self


class UntilNext(Form):
    """A lifetime until the next multiple of `every`, when all such blocks are freed at once."""

    kind: Literal["until-next"]
    every: PositiveSpan


def _kind(law: Any) -> str | None:
    """Returns the form of a value in the file, or of a model."""
    if isinstance(law, dict):
        kind = law.get("kind")
        return kind if kind is None else str(kind)
    if law == "forever":
        return "forever"
    return getattr(law, "kind", "constant")


_BY_KIND = Discriminator(_kind)


class Part(Spread[Measured], Generic[Measured]):
    """One part of a mixture."""

    weight: Annotated[Weight, Gt(0)]
    of: Measured


class Mixture(Spread[Measured], Generic[Measured]):
    """A mixture of distributions, each with the probability of its weight."""

    kind: Literal["mixture"]
    parts: Annotated[list[Part[Measured]], Field(min_length=1)]


_SizeForms = (
    Annotated[BlockSize, Tag("constant")]
    | Annotated[Choice[BlockSize], Tag("choice")]
    | Annotated[Uniform[BlockSize], Tag("uniform")]
    | Annotated[Lognormal[BlockSize], Tag("lognormal")]
    | Annotated[Exponential[BlockSize], Tag("exponential")]
    | Annotated[Pareto[BlockSize], Tag("pareto")]
    | Annotated[Histogram[BlockSize], Tag("histogram")]
)
_LifetimeForms = (
    Annotated[Span, Tag("constant")]
    | Annotated[Literal["forever"], Tag("forever")]
    | Annotated[UntilNext, Tag("until-next")]
    | Annotated[Choice[Span], Tag("choice")]
    | Annotated[Uniform[Span], Tag("uniform")]
    | Annotated[Lognormal[Span], Tag("lognormal")]
    | Annotated[Exponential[Span], Tag("exponential")]
    | Annotated[Pareto[Span], Tag("pareto")]
    | Annotated[Histogram[Span], Tag("histogram")]
)
_SizePart = Annotated[_SizeForms, _BY_KIND]
_LifetimePart = Annotated[_LifetimeForms, _BY_KIND]
_NAMES |= {_SizePart: "OfSizes", _LifetimePart: "OfTimes"}

SizeLaw = Annotated[_SizeForms | Annotated[Mixture[_SizePart], Tag("mixture")], _BY_KIND]
LifetimeLaw = Annotated[_LifetimeForms | Annotated[Mixture[_LifetimePart], Tag("mixture")], _BY_KIND]
CountLaw = Annotated[
    Annotated[Count, Tag("constant")]
    | Annotated[Choice[Count], Tag("choice")]
    | Annotated[Uniform[Count], Tag("uniform")]
    | Annotated[Lognormal[Count], Tag("lognormal")]
    | Annotated[Exponential[Count], Tag("exponential")]
    | Annotated[Histogram[Count], Tag("histogram")],
    _BY_KIND,
]
