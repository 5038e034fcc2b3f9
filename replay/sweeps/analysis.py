"""Ranking, effects of parameters and Pareto front of a sweep, from the rows of its results. Pure.

Lower is better in every metric. With several traces, a configuration is ranked by the mean of its ratios to the
default; with several seeds of a workload, by the mean, with its 95 % confidence interval.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from replay.support.names import by_version
from replay.sweeps.results import Results

_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom."""
_NORMAL = 1.960
LEVELS_SHOWN = 8
"""The numbers of a parameter are grouped into quarters if there are more than this."""


def half_width(values: Sequence[float]) -> float | None:
    """Returns half the width of the 95 % confidence interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    freedom = len(values) - 1
    quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL
    return quantile * math.sqrt(variance / len(values))


def ratio(value: float, default: float) -> float:
    """Returns the ratio of the value to the default; `1 + value` if the default is 0."""
    return value / default if default else 1.0 + value


def compared_inputs(results: Results) -> pl.DataFrame:
    """Returns the traces and seeds for comparisons: those with a completed run of the default, else all.

    A damaged trace fails with all configurations, so it does not count against any of them.
    """
    done = results.done
    of_default = done.filter(pl.col("default"))
    return (of_default if of_default.height else done).select("source", "seed").unique(maintain_order=True)


def per_source(results: Results, metric: str) -> pl.DataFrame:
    """Returns a row for each configuration and trace: `mean` over seeds, half its `interval`, `runs`, `ratio` to the
    default.

    Configurations with an incomplete seed are left out, because their mean would not be comparable.
    """
    inputs = compared_inputs(results)
    wanted = dict(inputs.group_by("source").len().iter_rows())
    rows = []
    compared = results.done.join(inputs, on=["source", "seed"], how="semi", nulls_equal=True, maintain_order="left")
    for (configuration, source), group in compared.group_by("configuration", "source", maintain_order=True):
        if group.height < wanted[source]:
            continue
        values = [float(value) for value in group[metric]]
        is_default = bool(group["default"][0])
        rows.append(
            (configuration, source, is_default, math.fsum(values) / len(values), half_width(values), len(values))
        )
    frame = pl.DataFrame(
        rows, schema=["configuration", "source", "default", "mean", "interval", "runs"], orient="row",
        schema_overrides={
            "configuration": pl.Int64, "source": pl.String, "default": pl.Boolean, "mean": pl.Float64,
            "interval": pl.Float64, "runs": pl.Int64,
        },
    )  # fmt: skip
    defaults = dict(frame.filter(pl.col("default")).select("source", "mean").iter_rows())
    ratios = [
        ratio(mean, defaults[source]) if source in defaults else None
        for source, mean in frame.select("source", "mean").iter_rows()
    ]
    return frame.with_columns(ratio=pl.Series(ratios, dtype=pl.Float64))


def ranking(results: Results, metric: str) -> pl.DataFrame:
    """Returns a row for each configuration with runs of all traces, best first: parameters, `mean`, `interval`,
    `ratio`.

    `mean` and `interval` are null if there are several traces. `ratio` is the mean over traces of the ratios to the
    default.
    """
    each = per_source(results, metric)
    sources = compared_inputs(results)["source"].n_unique()
    lone = pl.lit(results.has_one_source)
    summed = each.group_by("configuration", maintain_order=True).agg(
        pl.when(lone).then(pl.col("mean").first()).alias("mean"),
        pl.when(lone).then(pl.col("interval").first()).alias("interval"),
        pl.col("ratio").mean(),
        pl.len().alias("sources"),
    )
    parameters = results.frame.unique("configuration", keep="first", maintain_order=True)
    parameters = parameters.select("configuration", "default", *results.parameters)
    ranked = summed.filter(pl.col("sources") == sources).drop("sources").join(parameters, on="configuration")
    return ranked.sort(results.judged_by, "configuration", nulls_last=True, maintain_order=True)


def main_effects(results: Results, metric: str) -> pl.DataFrame:
    """Returns a row for each value of each varied parameter: `mean` of the metric over all other parameters, `share`.

    `share` is the part of the variance between configurations that the parameter alone explains. With several traces,
    the metric is the mean ratio to the default. Parameters with the largest share are first.
    """
    table = comparable(results, metric)
    rows: list[tuple[str, str, float, int, float]] = []
    for name in results.parameters:
        in_order = sort_by_size(table, name)
        levelled = in_order.select(level(in_order[name]).alias("level"), pl.col(results.judged_by).alias("judged"))
        groups = levelled.group_by("level", maintain_order=True).agg(
            pl.col("judged").mean().alias("mean"), pl.len().alias("count")
        )
        if groups.height < 2:
            continue
        share = _explained(levelled, groups)
        rows += [(name, level, mean, count, share) for level, mean, count in groups.iter_rows()]
    schema = {
        "parameter": pl.String,
        "value": pl.String,
        "mean": pl.Float64,
        "configurations": pl.Int64,
        "share": pl.Float64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row").sort("share", descending=True, maintain_order=True)


def comparable(results: Results, metric: str) -> pl.DataFrame:
    """Returns the rows of the ranking from which effects of parameters are computed."""
    return without_added_default(ranking(results, metric).drop_nulls(results.judged_by), results.parameters)


def by_size(value: Any) -> tuple[int, Any]:
    """Returns a sort key for values of a parameter: null, numbers, then texts, with versions in their order."""
    if value is None:
        return 0, 0
    if isinstance(value, int | float):
        return 1, value
    return (1, int(value)) if value.isdecimal() else (2, by_version(value))


def sort_by_size(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """Returns the rows, sorted by the values of a parameter."""
    keys = [by_size(value) for value in table[name]]
    return table[sorted(range(table.height), key=keys.__getitem__)]


def without_added_default(table: pl.DataFrame, parameters: Sequence[str]) -> pl.DataFrame:
    """Returns the rows without a default that is not a point of the varied space: it would distort the means.

    If only one parameter was varied, the default stays as one more value of it.
    """
    default, others = table.filter(pl.col("default")), table.filter(~pl.col("default"))
    if sum(others[name].n_unique() > 1 for name in parameters) < 2:
        return table
    added = any(default[name][0] not in others[name] for name in parameters if default.height)
    return others if added and others.height else table


def level(values: pl.Series) -> pl.Series:
    """Returns the values as text; more than LEVELS_SHOWN numbers as the quarter of each."""
    if values.n_unique() <= LEVELS_SHOWN or not values.dtype.is_numeric():
        return values.cast(pl.String).fill_null("default")
    bounds = [values.quantile(share, "nearest") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    names = [f"{low:.12g} to {high:.12g}" for low, high in pairwise(bounds) if low is not None]
    return pl.Series(
        [None if each is None else names[min(3, sum(each > bound for bound in bounds[1:4]))] for each in values]
    ).fill_null("default")


def _explained(levelled: pl.DataFrame, groups: pl.DataFrame) -> float:
    total_mean = levelled["judged"].mean()
    assert isinstance(total_mean, float)
    total = math.fsum((value - total_mean) ** 2 for value in levelled["judged"])
    between = math.fsum(count * (mean - total_mean) ** 2 for mean, count in groups.select("mean", "count").iter_rows())
    return between / total if total else 0.0


def pareto(results: Results, metrics: Sequence[str]) -> pl.DataFrame:
    """Returns the configurations that no other dominates, sorted by the first metric."""
    table = front_table(results, metrics)
    best = set(undominated(table.select(metrics).rows()))
    kept = [index for index, point in enumerate(table.select(metrics).rows()) if point in best]
    return table[kept].sort(*metrics, maintain_order=True)


def undominated(points: Iterable[Sequence[float]]) -> list[tuple[float, ...]]:
    """Returns the distinct points that no other dominates, sorted by their first coordinate."""
    front: list[tuple[float, ...]] = []
    for point in sorted({tuple(point) for point in points}):  # a point sorts before all points that it dominates
        if not any(dominates(other, point) for other in front):
            front.append(point)
    return front


def front_table(results: Results, metrics: Sequence[str]) -> pl.DataFrame:
    """Returns a row for each configuration: number, parameters, and the value that ranks it for each metric."""
    tables: list[pl.DataFrame] = []
    for metric in metrics:
        table = ranking(results, metric).drop_nulls(results.judged_by)
        keep = table if not tables else table.select("configuration", results.judged_by)
        tables.append(keep.rename({results.judged_by: metric}).drop(["mean", "interval", "ratio"], strict=False))
    joined = tables[0]
    for table in tables[1:]:
        joined = joined.join(table, on="configuration")
    return joined


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is at least as good as `other` in every metric, and better in one."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and any(a < b for a, b in zip(one, other, strict=True))
