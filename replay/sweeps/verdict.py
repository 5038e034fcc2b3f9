"""Decides whether the varied parameters of a sweep matter, by the spread of its results. Pure.

A difference matters if the highest value exceeds the lowest by more than a share of the lowest, `within`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from replay.sweeps.analysis import comparable, main_effects, per_source
from replay.sweeps.results import Results

WITHIN = 0.01
"""Default of `within`: the largest relative difference that does not matter."""


@dataclass(frozen=True)
class Spread:
    """The lowest and the highest value of a metric among configurations, for one trace; means over seeds."""

    metric: str
    source: str
    configurations: int
    lowest: float
    highest: float
    spread: float
    """`highest - lowest`"""
    relative_spread: float | None
    """`spread / lowest`; None if only the lowest value is 0."""
    matters: bool


@dataclass(frozen=True)
class Verdict:
    """The spreads of a sweep, and whether any of them matters."""

    within: float
    matters: bool
    spreads: tuple[Spread, ...]
    """One for each metric and trace with at least two simulated configurations."""

    def of(self, metric: str) -> list[Spread]:
        return [each for each in self.spreads if each.metric == metric]


def judge(results: Results, metrics: Sequence[str], *, within: float = WITHIN) -> Verdict:
    """Returns the verdict on the results."""
    spreads = [
        _spread(metric, str(source), group["mean"], within)
        for metric in metrics
        for (source,), group in per_source(results, metric).group_by("source", maintain_order=True)
        if group.height > 1
    ]
    return Verdict(within, any(each.matters for each in spreads), tuple(spreads))


def _spread(metric: str, source: str, means: pl.Series, within: float) -> Spread:
    lowest, highest = _ends(means)
    relative = relative_difference(lowest, highest)
    return Spread(
        metric, source, len(means), lowest, highest, highest - lowest, relative, not is_within(relative, within)
    )


def relative_difference(lowest: float, highest: float) -> float | None:
    """Returns the difference as a share of the lowest value; None if it is infinite."""
    if highest == lowest:
        return 0.0
    return (highest - lowest) / lowest if lowest else None


def is_within(relative: float | None, within: float) -> bool:
    return relative is not None and relative <= within


def parameter_effects(results: Results, metric: str, *, within: float = WITHIN) -> pl.DataFrame:
    """Returns a row for each varied parameter, in the order of `main_effects`.

    `share` is that of `main_effects`. `effect` is the difference between the lowest and the highest mean of a value,
    `relative_effect` its share of the lowest. `relative_effect_max` is the largest relative difference between
    configurations that differ only in this parameter, or `relative_effect` if there are none. `matters`: whether
    `relative_effect` exceeds `within`.
    """
    means = main_effects(results, metric)
    table = comparable(results, metric)
    rows = []
    for (name, share), group in means.group_by("parameter", "share", maintain_order=True):
        lowest, highest = _ends(group["mean"])
        relative = relative_difference(lowest, highest)
        others = [each for each in results.parameters if each != name]
        largest = _largest_difference(table, others, results.judged_by, relative)
        rows.append((name, share, highest - lowest, relative, largest, not is_within(relative, within)))
    schema = {
        "parameter": pl.String, "share": pl.Float64, "effect": pl.Float64, "relative_effect": pl.Float64,
        "relative_effect_max": pl.Float64, "matters": pl.Boolean,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _largest_difference(table: pl.DataFrame, others: list[str], judged: str, mean: float | None) -> float | None:
    """Returns the largest relative difference of configurations that are equal in `others`; `mean` without any."""
    groups = [group[judged] for _, group in table.group_by(others or pl.lit(0), maintain_order=True)]
    found = [relative_difference(*_ends(values)) for values in groups if len(values) > 1]
    if not found:
        return mean
    return None if None in found else max(each for each in found if each is not None)


def _ends(values: pl.Series) -> tuple[float, float]:
    floats = values.to_list()
    return min(floats), max(floats)
