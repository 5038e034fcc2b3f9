"""Whether what a sweep varied matters: how far apart the results of its configurations are. Pure.

A difference matters if the highest value exceeds the lowest by more than a share of the lowest, `within`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from replay.sweeps.analysis import comparable, main_effects, per_source
from replay.sweeps.results import Results

WITHIN = 0.01
"""The default limit: a smaller difference is not worth a setting."""


@dataclass(frozen=True)
class Spread:
    """The lowest and the highest value of a metric among configurations, on one trace; means over seeds."""

    metric: str
    source: str
    configurations: int
    lowest: float
    highest: float
    spread: float
    """`highest - lowest`"""
    relative_spread: float | None
    """`spread / lowest`; None where the lowest is 0 and the highest is not."""
    matters: bool


@dataclass(frozen=True)
class Verdict:
    """Whether any difference between the configurations matters, and each of them."""

    within: float
    matters: bool
    spreads: tuple[Spread, ...]
    """One for each metric and trace that at least two configurations were simulated on."""

    def of(self, metric: str) -> list[Spread]:
        return [each for each in self.spreads if each.metric == metric]


def judge(results: Results, metrics: Sequence[str], *, within: float = WITHIN) -> Verdict:
    """The verdict on the results, for each metric and trace."""
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
    """By what share of the lowest the highest exceeds it; None where that is infinite."""
    if highest == lowest:
        return 0.0
    return (highest - lowest) / lowest if lowest else None


def is_within(relative: float | None, within: float) -> bool:
    return relative is not None and relative <= within


def parameter_effects(results: Results, metric: str, *, within: float = WITHIN) -> pl.DataFrame:
    """A row for each parameter that was varied, in the order of `main_effects`.

    `share` is that of `main_effects`, `effect` the difference between the lowest and the highest mean of a value, and
    `relative_effect` its share of the lowest. `relative_effect_max` is the largest relative difference between
    configurations that differ only in this parameter, or `relative_effect` where there are none. `matters`: whether
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
    """Among configurations that are equal in `others`; the `mean` effect where no two are."""
    groups = [group[judged] for _, group in table.group_by(others or pl.lit(0), maintain_order=True)]
    found = [relative_difference(*_ends(values)) for values in groups if len(values) > 1]
    if not found:
        return mean
    return None if None in found else max(each for each in found if each is not None)


def _ends(values: pl.Series) -> tuple[float, float]:
    floats = values.to_list()
    return min(floats), max(floats)
